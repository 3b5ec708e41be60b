"""The page of a stain run: scores beside the thesis's tables 14-16, losses (figure 40), cells (figures 41-46)."""

import json
from pathlib import Path
from typing import Any

from trainer.loop.log import read_records
from trainer.metrics.evaluation import SeenRecord
from trainer.reports import figures
from trainer.reports.evaluation_section import seen_words
from trainer.reports.page import Block, Cell, Facts, Figure, Folded, Section, Table, Text, sheet_figure, write_page

# Tables 14 and 15 of the thesis: A is Barcelona, B Munich; CycleGAN, pix2pix, the thesis's own model.
THESIS_FID = {
    "A real - A generated": ("9.9732", "14.5771", "4.9834"),
    "A real - A reconstructed": ("5.6637", "9.8405", "3.7155"),
    "B real - B generated": ("11.7466", "13.5682", "4.2130"),
    "B real - B reconstructed": ("6.4624", "8.3391", "3.7126"),
}
THESIS_SSIM = {
    "A real - A reconstructed": ("0.9535", "0.9122", "0.9834"),
    "B real - B reconstructed": ("0.9662", "0.9256", "0.9869"),
}
THESIS_INCEPTION = ("88.34", "85.67", "96.26")
_STEP_NUMBERS = ("critic", "penalty", "adversarial", "cycle", "identity", "l1", "loss")


def write_stain_report(run: Path) -> Path:
    """Write run/report.html of a run of train_stain_gan.py and return it; what is not there yet is left out."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / "evaluation").glob("*.json"))]
    sections = [_scores(record) for record in records]
    sections += [_training(run), _sheets(run), _configuration(run)]
    above: list[Block] = [] if records else [Text("Not scored yet: launchers/evaluate.py run=...", warning=True)]
    subtitle = "Stain normalisation: scores, losses and cells."
    return write_page(run / "report.html", f"Run {run.resolve().name}", subtitle, above, sections)


def _scores(record: dict[str, Any]) -> Section:
    data = record["dataset"]
    facts = Facts(
        [
            ("data set", data["path"]),
            ("content hash", data["content_hash"]),
            ("split", f"{data['split']}, {data['count']} images of {' and '.join(data['domains'])}"),
            ("checkpoint", f"{record['checkpoint']['file']}"),
            ("features", record["feature_space"]),
            ("unseen", seen_words(SeenRecord(**record["seen_images"]))),
        ]
    )
    blocks: list[Block] = [facts]
    for name, scores in record["directions"].items():
        blocks.append(_direction(name, scores))
        if any(key.startswith("truth_") for key in scores):
            blocks.append(_truth(name, scores))
        if scores["generated"]["too_few"]:
            blocks.append(
                Text(
                    f"{name}: {scores['count']} images and {scores['generated']['dimensions']} features: a Fréchet "
                    "distance of so few images says more of their number than of their quality.",
                    warning=True,
                )
            )
    blocks.append(_thesis())
    return Section(f"Scores on {data['split']}", "Real images of this split.", blocks)


def _direction(name: str, scores: dict[str, Any]) -> Table:
    rows = []
    for measure in scores["generated"]["scores"]:
        values = [scores[pair]["scores"][measure]["value"] for pair in ("before", "generated", "reconstructed")]
        rows.append([Cell(measure), *(Cell(f"{value:.4g}") for value in values)])
    colours = scores["colour_distance"]
    rows.append(
        [
            Cell("colour statistics, CIELAB"),
            Cell(f"{colours['before']:.2f}"),
            Cell(f"{colours['after']:.2f}"),
            Cell("-"),
        ]
    )
    kept, ssim = scores["structure"], scores["reconstruction_ssim"]
    rows.append([Cell("structure kept (SSIM of grey density)"), Cell("1"), _mean(kept), Cell("-")])
    rows.append([Cell("SSIM"), Cell("-"), Cell("-"), _mean(ssim)])
    head = ["", "real source - real target", "normalised - real target", "reconstructed - source"]
    return Table(f"{name}: {scores['count']} images, against {scores['target_count']} of the target.", head, rows)


def _truth(name: str, scores: dict[str, Any]) -> Table:
    rows = [
        [Cell(label), _mean(scores[f"truth_{key}_before"]), _mean(scores[f"truth_{key}_after"])]
        for key, label in (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("ciede2000", "colour difference, CIEDE2000"))
    ]
    return Table(f"{name}: against the same cells in the target stain.", ["", "before", "normalised"], rows)


def _mean(values: dict[str, Any]) -> Cell:
    return Cell(f"{values['mean']:.3f}", f"sd {values['deviation']:.3f}")


def _thesis() -> Table:
    rows = [[Cell(f"FID {name}"), *map(Cell, values)] for name, values in THESIS_FID.items()]
    rows += [[Cell(f"SSIM {name}"), *map(Cell, values)] for name, values in THESIS_SSIM.items()]
    rows.append([Cell("inception score"), *map(Cell, THESIS_INCEPTION)])
    caption = (
        "The thesis's tables 14-16, A Barcelona and B Munich. Inception scores near 90 are out of reach of cell "
        "images: take them for a misprint or another scale."
    )
    return Table(caption, ["", "CycleGAN", "pix2pix", "W-CycleGAN-GP"], rows)


def _training(run: Path) -> Section:
    steps = [record for record in read_records(run) if record["kind"] == "step"]
    if not steps:
        return Section("Training", "metrics.jsonl holds no step yet.", [])
    seconds = sum(record["seconds"] for record in read_records(run) if record["kind"] == "epoch")
    blocks: list[Block] = []
    names = [name for name in _STEP_NUMBERS if name in steps[-1]]
    blocks.append(
        Figure(figures.loss_terms(steps, names, "losses"), "Losses before their weights (compare figure 40).")
    )
    norms = [name for name in steps[-1] if name.startswith(("gradient_norm", "detail/pull"))]
    caption = (
        "Norms of each learner's gradient, and how hard each weighted term pulls on a generated image: the L2 norm "
        "of its gradient there."
    )
    blocks.append(Figure(figures.loss_terms(steps, norms, "norms"), caption))
    blocks.append(Figure(figures.throughput(steps), f"Throughput of {len(steps)} logged steps."))
    intro = f"{steps[-1]['step']} steps, {steps[-1]['images']} images shown, {seconds / 60:.1f} minutes."
    return Section("Training", intro, blocks)


def _sheets(run: Path) -> Section:
    blocks = [sheet_figure(path, path.stem.replace("-", " ")) for path in last_sheets(run)]
    return Section("Cells", "Real, normalised and brought back (compare figures 41-46).", blocks)


def last_sheets(run: Path) -> list[Path]:
    """The newest sheets of a run that draws them by step."""
    sheets = sorted((run / "samples").glob("step-*.png"))
    return [path for path in sheets if path.name[:14] == sheets[-1].name[:14]]


def _configuration(run: Path) -> Section:
    text = (run / "config.yaml").read_text(encoding="utf-8")
    return Section("Configuration", "As resolved when the run started.", [Folded("config.yaml", text)])
