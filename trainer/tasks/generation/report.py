"""The page of a bank of generated images: its scores, what they are of, samples, and the images nearest to copies."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from trainer.metrics.classification import format_estimate
from trainer.reports.evaluation_section import interval_words, seen_words
from trainer.reports.page import Block, Cell, Facts, Section, Table, Text, sheet_figure, write_page
from trainer.tasks.generation.thesis import thesis_section

_KINDS = {"generated": "generated", "test": "real test"}
_DISTANCES = {"psnr": ("PSNR, dB", 1), "ssim": ("SSIM", 1), "l1": ("L1, %", 100), "l2": ("L2, %", 100)}


def write_generation_report(root: Path) -> Path:
    """Write ROOT/report.html from a bank's evaluations and return it. UserError where none is, or one is damaged."""
    paths = sorted((root / "evaluation").glob("*.json"))
    if not paths:
        raise UserError(f"{root}: not scored yet: launchers/evaluate.py bank=... first")
    try:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        sections = [_section(record, path.with_suffix("")) for record, path in zip(records, paths, strict=True)]
        sections.append(thesis_section(records))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root}/evaluation: not as evaluate.py writes it ({error!r}): score the bank again") from error
    subtitle = "Generated images: how near they are to real ones, and whether they are copies."
    return write_page(root / "report.html", f"Image bank {root.resolve().name}", subtitle, [], sections)


def _section(record: dict[str, Any], sheets: Path) -> Section:
    data, bank = record["dataset"], record["bank"]
    blocks: list[Block] = [_facts(record), *_warnings(record)]
    blocks += [_sets(record), _agreement(record), _perceptual(record), _nearest(record)]
    blocks += [_memorization(record, space) for space in ("pixels", "features")]
    blocks.append(_shortcut(record))
    blocks += [
        sheet_figure(
            path, f"{path.stem.removeprefix('samples-').replace('_', ' ')}: real test images, generated images."
        )
        for path in sorted(sheets.glob("samples-*.png"))
    ]
    blocks += [
        sheet_figure(
            path, f"Generated images nearest to training images, in {path.stem.removeprefix('nearest-')}: {_TURNED}"
        )
        for path in sorted(sheets.glob("nearest-*.png"))
    ]
    words = f"{bank['count']} generated images against {record['all']['count']['test']} real ones"
    return Section(
        f"Scores in {record['feature_space']}", f"{words}: {Path(data['path']).name}, {data['split']} split.", blocks
    )


_TURNED = "the training image is shown as it was turned or mirrored to match; below the type their distances."


def _facts(record: Mapping[str, Any]) -> Facts:
    bank, data, generator, judge = (record[name] for name in ("bank", "dataset", "generator", "classifier"))
    crop = ", ".join(f"{domain} {share}" for domain, share in data["crop"].items()) or "none"
    made_by = data["made_by"]
    return Facts(
        [
            ("bank", f"{bank['path']} (content {bank['content_hash'][:12]}), filed under {bank['domain']}"),
            ("generated images", f"{bank['count']} of {bank['image_size']} px"),
            (
                "generator",
                f"{generator['name']}, checkpoint {str(generator['checkpoint'])[:12]}, seed {generator['seed']}",
            ),
            ("data set", f"{data['path']} (content {data['content_hash'][:12]})"),
            ("made by", made_by if isinstance(made_by, str) else json.dumps(made_by, sort_keys=True)),
            (
                "real images",
                f"{data['split']} split ({record['all']['count']['test']}) to compare with, training split "
                f"({record['all']['count']['train']}) to look for copies; domains: {', '.join(data['domains'])}; "
                f"crop: {crop}",
            ),
            (
                "classifier",
                f"{judge['run']}: {judge['name']}, {judge['file']} (SHA-256 {judge['sha256'][:12]}), "
                f"learned from data set {judge['dataset_hash'][:12]}, {judge['image_size']} px",
            ),
            ("features", record["feature_space"]),
            ("unseen", seen_words(record)),
            ("perceptual distance", record["perceptual_distance"]),
            ("size", f"real images are read at the bank's, {bank['image_size']} px, cropped as its generator's were"),
        ]
    )


def _warnings(record: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if not record["generator"]["learned_from_this_data_set"]:
        blocks.append(
            Text(
                "The generator learned from another data set: copies of images that are not in this one stay unseen, "
                "and some of this one's test images may have been shown to it.",
                warning=True,
            )
        )
    for name, each in _rows(record):
        if each["generation"] is None:
            blocks.append(Text(f"{name}: fewer than two test images: nothing to compare with.", warning=True))
    few = [name for name, each in _rows(record) if each["generation"] is not None and each["generation"]["too_few"]]
    if few:
        blocks.append(
            Text(
                f"Fewer images than features on one side ({', '.join(few)}): their Fréchet distance says more of the "
                "number of images than of their quality; the kernel distance does not.",
                warning=True,
            )
        )
    return blocks


def _rows(record: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each type's record, then the one over all."""
    return [*record["per_type"].items(), ("all", record["all"])]


def _sets(record: Mapping[str, Any]) -> Table:
    scored = [each["generation"] for _, each in _rows(record) if each["generation"] is not None]
    names = list(scored[0]["scores"]) if scored else []
    rows = []
    for name, each in _rows(record):
        cells = [Cell(str(each["count"][kind])) for kind in ("generated", "test")]
        cells += [_value(each["generation"] and each["generation"]["scores"][score]) for score in names]
        manifold = each["manifold"] or {}
        cells += [_number(manifold.get(measure), 3) for measure in ("precision", "recall", "density", "coverage")]
        rows.append([Cell(name), *cells])
    caption = (
        "Sets of generated images against real test images of the type. Over all: as many of each type on either side. "
        f"Precision, recall, density and coverage with k = {record['neighbours']}; ± over subsets (of half the smaller "
        "side) or splits."
    )
    return Table(caption, ["type", "generated", "real", *names, "precision", "recall", "density", "coverage"], rows)


def _value(score: Mapping[str, float | None] | None) -> Cell:
    if score is None:
        return Cell("-")
    spread = "" if score["deviation"] is None else f"± {score['deviation']:.2g}"
    return Cell(f"{score['value']:.4g}", spread)


def _number(value: float | None, digits: int, factor: float = 1) -> Cell:
    return Cell("-" if value is None else f"{factor * value:.{digits}f}")


def _agreement(record: Mapping[str, Any]) -> Table:
    measures = {"precision": "precision", "sensitivity": "recall", "f1": "F1"}
    found = record["type_agreement"]
    rows = []
    for name in (*record["per_type"], "all"):
        row = [Cell(name)]
        for kind in _KINDS:
            scores = found[kind] if found[kind] is None or name == "all" else found[kind]["per_type"][name]
            if scores is None:
                row += [Cell("-")] * (1 + len(measures))
                continue
            row.append(Cell(str(scores["count"])))
            row += [Cell(format_estimate(scores[key]), interval_words(scores[key])) for key in measures]
        rows.append(row)
    head = [f"{words}: {name}" for words in _KINDS.values() for name in ("images", *measures.values())]
    caption = (
        "How an independent classifier, trained on real images alone, names the images (table 18), in per cent with "
        "95 % intervals; label: the type asked for. Beside it what it manages on real test images. Over all: the mean "
        "over the types."
    )
    return Table(caption, ["type", *head], rows)


def _perceptual(record: Mapping[str, Any]) -> Table:
    names = {
        "generated_to_real": "generated to real",
        "within_generated": "within generated",
        "within_real": "within real",
    }
    rows = []
    for name, each in _rows(record):
        cells = [
            Cell("-" if found["mean"] is None else f"{found['mean']:.4f}", f"{found['count']} pairs")
            for found in (each["perceptual"][key] for key in names)
        ]
        rows.append([Cell(name), *cells])
    caption = (
        f"Mean {record['perceptual_distance']} of pairs within a type. Generated images as diverse as real ones are as "
        "far from each other as those; nearer means collapsed. Over all: the mean over the types."
    )
    return Table(caption, ["type", *names.values()], rows)


def _nearest(record: Mapping[str, Any]) -> Table:
    rows = []
    for name, each in _rows(record):
        row = [Cell(name)]
        for kind in _KINDS:
            found = each["nearest_real"].get(kind)
            row += [
                Cell("-") if found is None else _number(found[key]["mean"], 2 if key != "ssim" else 4, factor)
                for key, (_, factor) in _DISTANCES.items()
            ]
        rows.append(row)
    head = [f"{words}: {title}" for words in _KINDS.values() for title, _ in _DISTANCES.values()]
    caption = (
        "To the nearest real training image of the type (table 20), mirrors and quarter turns included, nearest by the "
        "root mean square difference at 32 px. There is no true image to compare with: being nearer than real test "
        "images are is no merit but a sign of copies."
    )
    return Table(caption, ["type", *head], rows)


def _memorization(record: Mapping[str, Any], space: str) -> Table:
    rows = []
    for name, each in _rows(record):
        found = each["memorization"][space]
        if found is None:
            rows.append([Cell(name), *[Cell("-")] * 6])
            continue
        is_type = "threshold" in found
        medians = [f"{found['median'][kind]:.4g}" if is_type else "" for kind in ("generated", "held_out")]
        rows.append(
            [
                Cell(name),
                Cell(f"{100 * found['suspicious']:.1f} %", f"of {found['generated']}"),
                Cell(f"{found['threshold']:.4g}" if is_type else ""),
                Cell(str(found["held_out"]), "too few" if found.get("too_few") else ""),
                *map(Cell, medians),
                Cell(f"{found['z']:.1f}" if is_type else ""),
            ]
        )
    share = 100 * record["quantile"]
    caption = (
        f"Copies, in {space}: generated images nearer to a training image of their type than {100 - share:g} % of the "
        f"real test images are; of an honest generator about {share:g} %. z: Mann-Whitney, below -3 the generated "
        "images lie nearer as a whole. Mirrors and quarter turns count as the same image. Test images come from other "
        "patients than training images: a share somewhat above is no proof, the pairs below show."
    )
    head = ["type", "suspiciously near", "threshold", "held-out images", "median, generated", "median, held-out", "z"]
    return Table(caption, head, rows)


def _shortcut(record: Mapping[str, Any]) -> Table:
    rows = []
    for name, each in _rows(record):
        row = [Cell(name)]
        for scores in (found[way] for found in each["shortcut"] for way in _WAYS):
            row += [
                Cell("-") if scores is None else Cell(format_estimate(scores[key]), interval_words(scores[key]))
                for key in _DETECTION
            ]
        rows.append(row)
    sizes = [each["image_size"] for each in record["all"]["shortcut"]]
    head = [f"{size} px, {way}: {words}" for size in sizes for way in _WAYS.values() for words in _DETECTION.values()]
    caption = (
        "Whether gradient boosting on colours, spectrum and block steps tells generated from real training images, in "
        "per cent with 95 % intervals, cross-validated over groups; 50: it cannot; '-': too few images. As stored: as "
        "a classifier sees them that learns from both; near 100 it can learn what is generated instead of the cell. "
        "Same way: the real images too were brought to the bank's size first, which leaves what the generator does; "
        "where only the first is high, build the data set with stored_size at the bank's size."
    )
    return Table(caption, ["type", *head], rows)


_WAYS = {"as_stored": "as stored", "same_way": "same way"}
_DETECTION = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
