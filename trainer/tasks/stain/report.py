"""The report of a stain run: scores beside the thesis's tables 14-16, losses (figure 40), cells (figures 41-46)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from trainer.loop.algorithm import DETAIL
from trainer.loop.log import read_records
from trainer.metrics.evaluation import SeenRecord
from trainer.reports import figures
from trainer.reports.evaluation_section import seen_words
from trainer.reports.page import Block, Cell, Facts, Figure, Folded, Section, Table, Text, sheet_figure, write_page
from trainer.reports.thesis_tables import Column, beside_thesis, columns_of, rows_of

_LOSSES = ("critic", "penalty", "adversarial", "cycle", "identity", "l1", "loss")
# Of each network, on logged steps.
_NETWORKS = {
    f"{DETAIL}{name}_{domain}": f"{who} {domain.upper()}"
    for name, who in (("critic", "critic of"), ("adversarial", "generator into"))
    for domain in ("a", "b")
}


def write_stain_report(run: Path) -> Path:
    """Write run/report.html of a run of train_stain_gan.py and return its path; missing parts are left out.

    UserError where a file in run/evaluation is damaged.
    """
    sections = [_scores(_read(path)) for path in sorted((run / "evaluation").glob("*.json"))]
    above: list[Block] = [] if sections else [Text("Not scored yet: launchers/evaluate.py run=...", warning=True)]
    sheets = [sheet_figure(path, path.stem.replace("-", " ")) for path in last_sheets(run)]
    settings = Folded("config.yaml", (run / "config.yaml").read_text(encoding="utf-8"))
    sections += [
        _training(run),
        Section("Cells", "Real, normalised and brought back (compare figures 41-46).", sheets),
        Section("Configuration", "As resolved when the run started.", [settings]),
    ]
    subtitle = "Stain normalisation: scores, losses and cells."
    return write_page(run / "report.html", f"Run {run.resolve().name}", subtitle, above, sections)


def _read(path: Path) -> dict[str, Any]:
    """An evaluation's record. UserError where it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}): run evaluate.py again, or remove it") from error


def _scores(record: dict[str, Any]) -> Section:
    data = record["dataset"]
    facts = [
        ("data set", data["path"]),
        ("content hash", data["content_hash"]),
        ("split", f"{data['split']}, {data['count']} images of {' and '.join(data['domains'])}"),
        ("checkpoint", record["checkpoint"]["file"]),
        ("features", record["feature_space"]),
        ("unseen", seen_words(SeenRecord(**record["seen_images"]))),
    ]
    blocks: list[Block] = [Facts(facts)]
    for name, scores in record["directions"].items():
        blocks += _direction(name, scores)
    return Section(f"Scores on {data['split']}", "Real images of this split.", [*blocks, _thesis()])


def _direction(name: str, scores: dict[str, Any]) -> list[Block]:
    pairs = [scores[pair]["scores"] for pair in ("before", "generated", "reconstructed")]
    rows = [[Cell(measure), *(Cell(f"{pair[measure]['value']:.4g}") for pair in pairs)] for measure in pairs[0]]
    colours, none = scores["colour_distance"], Cell("-")
    colour_cells = [Cell(f"{colours[when]:.2f}") for when in ("before", "after")]
    rows += [
        [Cell("colour statistics, CIELAB"), *colour_cells, none],
        [Cell("structure kept (SSIM of grey density)"), Cell("1"), _mean(scores["structure"]), none],
        [Cell("SSIM"), none, none, _mean(scores["reconstruction_ssim"])],
    ]
    head = ["", "real source - real target", "normalised - real target", "reconstructed - source"]
    caption = f"{name}: {scores['count']} images, against {scores['target_count']} of the target."
    blocks: list[Block] = [Table(caption, head, rows)]
    truth = [
        [Cell(label), *(_mean(scores[f"truth_{key}_{when}"]) for when in ("before", "after"))]
        for key, label in (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("ciede2000", "colour difference, CIEDE2000"))
        if f"truth_{key}_after" in scores
    ]
    if truth:
        caption = f"{name}: against the same cells in the target stain."
        blocks.append(Table(caption, ["", "before", "normalised"], truth))
    if scores["generated"]["too_few"]:
        few = (
            f"{name}: {scores['count']} images and {scores['generated']['dimensions']} features: a Fréchet distance of "
            "so few images says more of their number than of their quality."
        )
        blocks.append(Text(few, warning=True))
    return blocks


def _mean(values: dict[str, Any]) -> Cell:
    return Cell(f"{values['mean']:.3f}", f"sd {values['deviation']:.3f}")


def _thesis() -> Table:
    columns: list[Column[None]] = [
        Column(f"{words}{name}", lambda _: "", table, name)
        for table, words in (("14", "FID "), ("15", ""), ("16", ""))
        for name in columns_of(table)
    ]
    caption = (
        "The thesis's tables 14-16, A Barcelona and B Munich. Inception scores near 90 are out of reach of cell "
        "images: take them for a misprint or another scale."
    )
    return beside_thesis(caption, columns, [], rows_of("14"))


def _training(run: Path) -> Section:
    steps = read_records(run, "step")
    if not steps:
        return Section("Training", "metrics.jsonl holds no step yet.", [])
    seconds = sum(record["seconds"] for record in read_records(run, "epoch"))
    losses = [name for name in _LOSSES if name in steps[-1]]
    norms = [name for name in steps[-1] if name.startswith(("gradient_norm", "detail/pull"))]
    caption = (
        "Norms of each learner's gradient, and how hard each weighted term pulls on a generated image: the L2 norm "
        "of its gradient there."
    )
    blocks = [
        Figure(figures.loss_terms(steps, losses, "losses"), "Losses before their weights."),
        *network_losses(steps),
        Figure(figures.loss_terms(steps, norms, "norms"), caption),
        Figure(figures.throughput(steps), f"Throughput of {len(steps)} logged steps."),
    ]
    intro = f"{steps[-1]['step']} steps, {steps[-1]['images']} images shown, {seconds / 60:.1f} minutes."
    return Section("Training", intro, blocks)


def network_losses(steps: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Figure 40; steps: the "step" lines. Empty for a run without critics."""
    found = [
        {label: step[name] for name, label in _NETWORKS.items() if name in step} | {"step": step["step"]}
        for step in steps
    ]
    names = [name for name in _NETWORKS.values() if name in found[-1]]
    caption = "Figure 40: the loss of each network, a critic's without its penalty, a generator's adversarial term."
    return [Figure(figures.loss_terms(found, names, "networks"), caption)] if names else []


def last_sheets(run: Path) -> list[Path]:
    """The newest step's sample sheets of a run."""
    sheets = sorted((run / "samples").glob("step-*.png"))
    return [path for path in sheets if path.name[:14] == sheets[-1].name[:14]]
