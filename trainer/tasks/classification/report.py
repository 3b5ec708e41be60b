"""The report of a run: what it learned from, how it went, how it was scored."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from trainer.metrics.classification import format_estimate
from trainer.metrics.evaluation import Evaluation, load_evaluations
from trainer.reports import figures
from trainer.reports.evaluation_section import (
    data_facts,
    data_words,
    evaluation_section,
    headline,
    interval_words,
)
from trainer.reports.page import Block, Cell, Figure, Folded, Links, Section, Table, Text, write_page
from trainer.tasks.classification.model_card import MODEL_CARD

SUMMARY = ("accuracy", "balanced_accuracy", "specificity", "f1", "auroc", "calibration_error")


def write_run_report(run: Path) -> Path:
    """Write run/report.html from the run directory, pictures from the data sets it was scored on; return it.

    Whatever is not there yet (evaluations, metrics.jsonl, a data set) is named as missing instead of shown.
    Raises UserError when run is no directory or an evaluation in it is damaged.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no run here; give the directory that train_classifier.py wrote (run=DIR)")
    evaluations = load_evaluations(run)
    above: list[Block] = []
    if evaluations and evaluations[0].is_own_test:
        above = [data_facts(evaluations[0].record), headline(evaluations[0].record)]
    else:
        above = [Text("The run's own test split has not been scored yet.", warning=True)]
    if (run / MODEL_CARD).exists():
        above.insert(0, Links("Beside this page:", [("model card", MODEL_CARD)]))
    if len(evaluations) > 1:
        above.append(_summary(evaluations))
    subtitle = f"{data_words(evaluations[0].record)}. " if evaluations and evaluations[0].is_own_test else ""
    subtitle += "All scores in per cent, with 95 % intervals over groups."
    sections = [
        _training(run),
        *(evaluation_section(evaluation) for evaluation in evaluations),
        _configuration(run),
    ]
    return write_page(run / "report.html", f"Run {run.resolve().name}", subtitle, above, sections)


def _summary(evaluations: list[Evaluation]) -> Table:
    rows = []
    for evaluation in evaluations:
        scores = evaluation.record["scores"]
        cells = [Cell(format_estimate(scores[name]), interval_words(scores[name])) for name in SUMMARY]
        rows.append([Cell(data_words(evaluation.record)), *cells])
    return Table("All evaluations of this run.", ["data", *(name.replace("_", " ") for name in SUMMARY)], rows)


def _training(run: Path) -> Section:
    lines = _metrics_lines(run / "metrics.jsonl")
    epochs = [line for line in lines if line.get("kind") == "epoch"]
    steps = [line for line in lines if line.get("kind") == "step"]
    blocks: list[Block] = []
    intro = "metrics.jsonl holds no epoch yet."
    if epochs:
        last = epochs[-1]
        hours = sum(line.get("seconds") or 0.0 for line in epochs) / 3600
        took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        intro = f"{len(epochs)} epochs, {last['step']} steps, {took}."
        caption = "Accuracy and loss of training and validation images after each epoch (compare figure 51)."
        blocks = [Figure(figures.training_curves(epochs), caption), _last_epochs(epochs)]
    if steps:
        caption = f"Throughput of {len(steps)} logged steps."
        blocks.append(Figure(figures.throughput(steps), caption))
    return Section("Training", intro, blocks)


def _last_epochs(epochs: list[dict[str, Any]]) -> Table:
    """The last epoch and the best on validation, as numbers."""
    key = "validation_balanced_accuracy"
    best = max(epochs, key=lambda line: (line.get(key) or 0.0, -line["epoch"]))
    rows = []
    for name, line in (("last", epochs[-1]), ("best on validation", best)):
        shares = [line.get(measure) for measure in ("train_accuracy", "validation_accuracy", key)]
        losses = [line.get(measure) for measure in ("train_loss", "validation_loss")]
        cells = [Cell("-" if share is None else f"{100 * share:.1f}") for share in shares]
        cells += [Cell("-" if loss is None else f"{loss:.3f}") for loss in losses]
        rows.append([Cell(name), Cell(str(line["epoch"])), *cells])
    head = ["epoch", "number", "training accuracy", "validation accuracy", "validation balanced accuracy"]
    caption = "Measured while training, on the run's own training and validation splits; accuracies in per cent."
    return Table(caption, [*head, "training loss", "validation loss"], rows)


def _metrics_lines(path: Path) -> list[dict[str, Any]]:
    """The log's lines; a line cut short by a killed run is passed over."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _configuration(run: Path) -> Section:
    path = run / "config.yaml"
    if not path.is_file():
        return Section("Configuration", "config.yaml is missing from the run.", [])
    text = path.read_text(encoding="utf-8", errors="replace")
    return Section("Configuration", "As resolved when the run started.", [Folded("config.yaml", text)])
