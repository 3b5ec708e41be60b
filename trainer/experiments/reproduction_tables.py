"""Tables 13-24 of the thesis with this reproduction's numbers: ours large, the thesis's small below."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.experiments.sweep_sections import duration
from trainer.metrics.bootstrap import Estimate
from trainer.reports.page import Block, Cell, Table, Text
from trainer.tasks.generation.thesis import AGREEMENT, BUDGETS, DISTANCES, FEW_SHOT, SETS, TIMES
from trainer.tasks.stain.report import THESIS_FID, THESIS_INCEPTION, THESIS_SSIM

Model = Mapping[str, Any]

# What the thesis calls a model that it has numbers of.
_STAIN_NAMES = {"cyclegan": "CycleGAN", "pix2pix": "pix2pix", "w_cyclegan_gp": "W-CycleGAN-GP"}
_STAIN_TIMES = {"CycleGAN": "12 h 6 min", "pix2pix": "13 h 4 min", "W-CycleGAN-GP": "10 h 36 min"}
_STAIN_COLUMNS = ("CycleGAN", "pix2pix", "W-CycleGAN-GP")  # of tables 14-16
_CONDITIONAL_NAMES = {
    "ac_gan": "AC-GAN",
    "cwgan_gp": "CWGAN-GP",
    "info_gan": "InfoGAN",
    "dcgan": "DCGAN",
    "cgan": "CGAN",
    "c_wgan_gp": "C-WGAN-GP",
}
_FEW_SHOT_NAMES = {
    "figr": "FIGR",
    "fast_gan": "FastGAN",
    "diff_augment": "DiffAugment",
    "mine_gan": "MineGAN",
    "c_wgan_gp": "C-WGAN-GP",
    "few_shot_meta": "proposed",
}
# Table 23.
_ENVIRONMENT = {
    "operating system": "Ubuntu 20.04.2 LTS",
    "processor": "Intel Core i7-8700, 3.20 GHz, 12 threads",
    "graphics": "GeForce RTX 2080 SUPER",
    "memory": "32 GB",
    "language": "Python 3.6",
}
# Images of each type after the thesis's removals, all splits together, table 6.
THESIS_COUNTS = {
    "basophil": 1224,
    "eosinophil": 3538,
    "erythroblast": 1547,
    "immature granulocyte": 2933,
    "lymphocyte": 5038,
    "monoblast": 26,
    "monocyte": 2583,
    "myeloblast": 3104,
    "neutrophil": 10744,
    "platelet": 2339,
    "promyelocyte": 87,
    "smudge cell": 15,
}


def counts_table(summary: Mapping[str, Any]) -> Table:
    """Table 6: images of each type, and what the experiment does with it."""
    to, of = summary["stains"]
    rows = []
    for name, stains in summary["counts"].items():
        splits = [sum(each[split] for each in stains.values()) for split in ("train", "validation", "test")]
        role = [kind for kind in ("rare", "moderate", "rich") if name in summary["roles"][kind]]
        made = summary["roles"]["lacking"].get(name, 0)
        cells = [Cell(str(sum(stains[stain].values()))) for stain in (to, of)]
        cells += [Cell(str(count)) for count in splits]
        rows.append(
            [Cell(name), *cells, Cell(role[0] if role else "-"), Cell(str(made)), Cell(str(THESIS_COUNTS[name]))]
        )
    caption = (
        "Table 6: real images of each type by stain and split, who makes more of them (moderate: C-WGAN-GP, rare: "
        f"few-shot generation), and how many it makes to bring the type to {summary['roles']['per_type']}."
    )
    head = ["type", to, of, "training", "validation", "test", "role", "generated", "thesis: images"]
    return Table(caption, head, rows)


def stain_tables(summary: Mapping[str, Any]) -> list[Block]:
    """Tables 13-16."""
    to, of = summary["stains"]
    rows, spaces = [], []
    for model, found in summary["models"]["stain"].items():
        theirs = _STAIN_NAMES.get(model)
        column = _STAIN_COLUMNS.index(theirs) if theirs else None
        directions = found["record"]["directions"]
        into_to, into_of = directions[f"{of}_as_{to}"], directions[f"{to}_as_{of}"]
        pairs = (
            (into_to["generated"], "A real - A generated"),
            (into_of["reconstructed"], "A real - A reconstructed"),
            (into_of["generated"], "B real - B generated"),
            (into_to["reconstructed"], "B real - B reconstructed"),
        )
        cells = [_beside(duration(found["cost"]["seconds"] or None), theirs and _STAIN_TIMES[theirs])]
        cells += [_beside(_frechet(pair), _column(THESIS_FID[name], column)) for pair, name in pairs]
        for record, name in ((into_of, "A real - A reconstructed"), (into_to, "B real - B reconstructed")):
            mean = record["reconstruction_ssim"]["mean"]
            cells.append(_beside(f"{mean:.4f}", _column(THESIS_SSIM[name], column)))
        cells.append(_beside(_inception(into_to["generated"]), _column(THESIS_INCEPTION, column)))
        cells.append(Cell(f"{into_to['structure']['mean']:.3f}"))
        colours = into_to["colour_distance"]
        cells.append(Cell(f"{colours['after']:.1f}", f"{colours['before']:.1f} before"))
        rows.append([Cell(model), *cells])
        spaces.append(found["record"]["feature_space"])
    head = ["", "training (13)", "A generated (14)", "A reconstructed (14)", "B generated (14)"]
    head += ["B reconstructed (14)", "SSIM A (15)", "SSIM B (15)", "inception score (16)"]
    head += ["structure kept", "colour distance"]
    caption = (
        f"Tables 13-16: A is {to}, B {of}, on their test images. (14): Fréchet distances in {spaces[0]}; the last "
        "three columns are of B given A's stain."
    )
    return [Table(caption, head, rows), *_not_fid(spaces[0])]


def conditional_tables(summary: Mapping[str, Any]) -> list[Block]:
    """Tables 17-20."""
    rows, space = [], ""
    for model, found in summary["models"]["conditional"].items():
        record, theirs = found["record"], _CONDITIONAL_NAMES.get(model, "")
        agreement, space = record["type_agreement"]["generated"], record["feature_space"]
        cells = [_beside(duration(found["cost"]["seconds"] or None), TIMES.get(theirs))]
        for number, measure in enumerate(("precision", "sensitivity", "f1")):
            published = f"{AGREEMENT[theirs][number]:.2f}" if theirs in AGREEMENT else None
            cells.append(_beside(Estimate(**agreement["overall"][measure]).format(), published))
        cells += _set_cells(record, SETS.get(theirs))
        cells += _distance_cells(record, DISTANCES.get(theirs))
        rows.append([Cell(model), *cells])
    head = ["", "training (17)", "precision (18)", "recall (18)", "F1 (18)", "Fréchet (19)", "inception (19)"]
    head += ["perceptual (19)", "PSNR (20)", "SSIM (20)", "L1, % (20)", "L2, % (20)"]
    caption = (
        f"Tables 17-20: {summary['models']['conditional']['c_wgan_gp']['record']['bank']['count']} generated images of "
        f"each model, types {', '.join(summary['roles']['moderate'])}. (18): by a classifier of real images alone. "
        f"(19): in {space}. (20): to the nearest real training image of the type, as generated ones have no true one."
    )
    notes = (
        "Of the thesis's table 18 an F1 above the mean of precision and recall cannot be (AC-GAN, CWGAN-GP); of table "
        "19 inception scores above 8 are out of reach of a classifier of eight types; in table 20 40 dB mean an RMSE "
        "of 1 %, which cannot go with L1 of 6.9 %."
    )
    return [Table(caption, head, rows), Text(notes, warning=True), *_not_fid(space)]


def few_shot_tables(summary: Mapping[str, Any]) -> list[Block]:
    """Tables 21 and 22."""
    rows, space = [], ""
    for model, found in summary["models"]["few_shot"].items():
        record, cost, theirs = found["record"], found["cost"], _FEW_SHOT_NAMES.get(model, "")
        space = record["feature_space"]
        agreement = record["type_agreement"]["generated"]
        accuracy = Estimate(**agreement["overall"]["accuracy"])
        time, episodes, parameters = BUDGETS.get(theirs, (None, None, None))
        generator = cost["parameters"].get("generator", 0)
        cells = _set_cells(record, FEW_SHOT.get(theirs))
        cells += [
            Cell(accuracy.format(), accuracy.interval()),
            _beside(duration(cost["seconds"] or None), time),
            _beside(str(cost["steps"]), episodes),
            _beside(f"{sum(cost['parameters'].values()) / 1e6:.2f}", parameters),
            Cell(f"{generator / 1e6:.2f}"),
        ]
        rows.append([Cell(model), *cells])
    head = ["", "Fréchet (21)", "inception (21)", "perceptual (21)", "of the type asked for, %", "training (22)"]
    head += ["steps before adapting (22)", "parameters, millions (22)", "of the generator"]
    rare = ", ".join(summary["models"]["few_shot"]["few_shot_meta"]["record"]["per_type"])
    caption = f"Tables 21 and 22: {rare}; distances in {space}, over all these types. Times include the adaptation."
    notes = (
        "The thesis calls its own inception score in table 21, 3.16, the highest; it is the lowest. With so few real "
        "images a Fréchet distance says more of their number than of quality: each bank's own report has the kernel "
        "distance, diversity and copies for each type."
    )
    return [Table(caption, head, rows), Text(notes, warning=True), *_not_fid(space)]


def environment_table(machine: Mapping[str, Any]) -> Table:
    """Table 23."""
    gpu = machine["gpu"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    ours = {
        "operating system": machine["system"],
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "graphics": gpu["name"] if gpu else "none",
        "memory": f"{machine['memory_gib']} GiB",
        "language": f"Python {machine['python']}",
    }
    rows = [[Cell(name), Cell(ours[name]), Cell(theirs)] for name, theirs in _ENVIRONMENT.items()]
    rows.append([Cell("packages"), Cell(packages), Cell("not told")])
    return Table("Table 23: the machine that put this report together.", ["", "here", "thesis"], rows)


def site_table(summary: Mapping[str, Any]) -> Table:
    """Balanced accuracy between the two stains, with and without each part."""
    to, of = summary["stains"]
    pairs = [(site, stain) for site in (to, of, "both") for stain in (to, of)]
    found = {(row["arm"], row["trained_on"], row["tested_on"]): row["scores"] for row in summary["sites"]}
    rows = []
    for arm, title in {row["arm"]: row["title"] for row in summary["sites"]}.items():
        cells = []
        for pair in pairs:
            scores = found.get((arm, *pair))
            value = Estimate(**scores["balanced_accuracy"]) if scores else Estimate(None)
            cells.append(Cell(value.format(), value.interval()) if scores else Cell("-"))
        rows.append([Cell(title), *cells])
    head = ["", *(f"{site}, tested on {stain} ({_size(found, site, stain)})" for site, stain in pairs)]
    caption = (
        "Balanced accuracy in per cent over the types that the classifier knows and the test images have, by what it "
        "learned from; 95 % intervals over groups below."
    )
    return Table(caption, head, rows)


def _size(found: Mapping[tuple[str, str, str], Any], site: str, stain: str) -> str:
    scores = next(each for (_, own, tested), each in found.items() if (own, tested) == (site, stain))
    return f"{scores['types']} types, n={scores['count']}"


def _set_cells(record: Mapping[str, Any], published: Sequence[str] | None) -> list[Cell]:
    """Fréchet distance, inception score and perceptual distance over all types."""
    pair, perceptual = record["all"]["generation"], record["all"]["perceptual"]["generated_to_real"]["mean"]
    ours = [
        "-" if pair is None else _frechet(pair),
        "-" if pair is None else _inception(pair),
        "-" if perceptual is None else f"{perceptual:.3f}",
    ]
    return [_beside(text, published[number] if published else None) for number, text in enumerate(ours)]


def _distance_cells(record: Mapping[str, Any], published: Sequence[float] | None) -> list[Cell]:
    nearest = record["all"]["nearest_real"]["generated"]
    cells = []
    for number, (measure, factor, digits) in enumerate(
        (("psnr", 1, 2), ("ssim", 1, 4), ("l1", 100, 2), ("l2", 100, 2))
    ):
        mean = nearest[measure]["mean"]
        text = "-" if mean is None else f"{factor * mean:.{digits}f}"
        cells.append(_beside(text, f"{published[number]:.{digits}f}" if published else None))
    return cells


def _frechet(pair: Mapping[str, Any]) -> str:
    return f"{next(iter(pair['scores'].values()))['value']:.2f}"


def _inception(pair: Mapping[str, Any]) -> str:
    score = list(pair["scores"].values())[2]
    return f"{score['value']:.2f} ± {score['deviation']:.2f}"


def _column(values: Sequence[str], number: int | None) -> str | None:
    return None if number is None else values[number]


def _beside(ours: str, thesis: str | None) -> Cell:
    return Cell(ours, f"thesis {thesis}" if thesis else "")


def _not_fid(space: str) -> list[Block]:
    """Where features are not Inception's, distances are of another scale."""
    if "inception" in space.lower():
        return []
    words = (
        f"Distances and inception scores here are in the features of {space}: of another scale than the thesis's FID."
    )
    return [Text(words, warning=True)]
