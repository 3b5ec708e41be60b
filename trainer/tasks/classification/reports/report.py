"""The report of a classifier's run: what it learned from, how training went, how it was scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError
from trainer.loop.log import read_records
from trainer.metrics.evaluation import SavedEvaluation, load_evaluations
from trainer.metrics.measures import epoch_measures, shown
from trainer.reports import figures
from trainer.reports.evaluation_section import data_facts, data_words, evaluation_section, headline, score_cells
from trainer.reports.page import (
    Block,
    Cell,
    Figure,
    Links,
    Section,
    Table,
    Text,
    configuration_section,
    write_page,
)
from trainer.runs.run_directory import CONFIG_FILE
from trainer.tasks.classification.reports.adaptation_record import read_adaptation
from trainer.tasks.classification.reports.adaptation_section import adaptation_section
from trainer.tasks.classification.reports.control_record import FILE as CONTROL_FILE
from trainer.tasks.classification.reports.control_record import read_control
from trainer.tasks.classification.reports.control_section import control_section
from trainer.tasks.classification.reports.model_card import MODEL_CARD


def write_run_report(run: Path) -> Path:
    """Write run/report.html from the run directory, pictures from the data sets it was scored on; return its path.

    run: or a folder that holds scores alone, of an ensemble for example.

    Whatever is not there yet (evaluations, metrics.jsonl, a data set) is named as missing.
    Raises UserError when run is no directory or an evaluation in it is damaged.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no run here; give the directory that train_classifier.py wrote (run=DIR)")
    evaluations = load_evaluations(run)
    scores_alone = bool(evaluations) and not (run / CONFIG_FILE).exists()
    above: list[Block] = []
    controlled = (run / CONTROL_FILE).is_file()
    if controlled:
        above.append(Text("Trained under the thesis's protocol: this run has a control, and no score.", warning=True))
    elif not scores_alone:
        above.append(Text("The run's own test split has not been scored yet.", warning=True))
    subtitle = "All scores in per cent, with 95 % intervals over groups."
    if evaluations and evaluations[0].is_own_test:
        record = evaluations[0].record
        above = [data_facts(record), headline(record.scores)]
        subtitle = f"{data_words(record)}. {subtitle}"
    if (run / MODEL_CARD).exists():
        above.insert(0, Links("Beside this page:", [("model card", MODEL_CARD)]))
    if len(evaluations) > 1:
        above.append(_all_evaluations(evaluations))
    sections = [evaluation_section(evaluation) for evaluation in evaluations]
    if scores_alone:
        return write_page(run / "report.html", f"Scores in {run.resolve().name}", subtitle, above, sections)
    adaptation = read_adaptation(run)
    first = _training(run) if adaptation is None else adaptation_section(adaptation)
    if controlled:
        sections.append(control_section(read_control(run)))
    sections = [first, *sections, configuration_section(run)]
    return write_page(run / "report.html", f"Run {run.resolve().name}", subtitle, above, sections)


def _all_evaluations(evaluations: Sequence[SavedEvaluation]) -> Table:
    columns = shown("headline")
    rows = [[Cell(data_words(each.record)), *score_cells(each.record.scores.overall, columns)] for each in evaluations]
    return Table("All evaluations of this run.", ["data", *(each.label for each in columns)], rows)


def _training(run: Path) -> Section:
    records = read_records(run)
    epochs, steps = ([each for each in records if each.get("kind") == kind] for kind in ("epoch", "step"))
    blocks: list[Block] = []
    intro = "metrics.jsonl holds no epoch yet."
    if epochs:
        hours = sum(each.get("seconds") or 0.0 for each in epochs) / 3600
        took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        intro = f"{len(epochs)} epochs, {epochs[-1]['step']} steps, {took}."
        caption = "Accuracy and loss of training and validation images after each epoch (compare figure 51)."
        blocks = [Figure(figures.training_curves(epochs), caption), _epoch_table(epochs, _select_by(run))]
    if steps:
        blocks.append(Figure(figures.throughput(steps), f"Throughput of {len(steps)} logged steps."))
    return Section("Training", intro, blocks)


def _select_by(run: Path) -> str:
    """The validation score that chose the run's best checkpoint."""
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return str((content or {}).get("train", {}).get("select_by", "balanced_accuracy"))


def _epoch_table(epochs: Sequence[Mapping[str, Any]], select_by: str) -> Table:
    """The last epoch and the best on validation, as numbers."""
    chosen = epoch_measures()[select_by]
    known = [each for each in epochs if each.get(f"validation_{select_by}") is not None]
    # The earliest of several equal ones, as in training.
    best = (max if chosen.higher_is_better else min)(
        known, key=lambda each: each[f"validation_{select_by}"], default=epochs[-1]
    )
    columns = {f"train_{name}": ("training", name) for name in ("accuracy", "loss")}
    columns |= {f"validation_{name}": ("validation", name) for name in epoch_measures()}
    rows = []
    for name, record in (("last", epochs[-1]), (f"best {select_by.replace('_', ' ')} on validation", best)):
        cells = []
        for key, (_, measure) in columns.items():
            value, is_share = record.get(key), epoch_measures()[measure].percent
            cells.append(Cell("-" if value is None else f"{100 * value:.1f}" if is_share else f"{value:.3f}"))
        rows.append([Cell(name), Cell(str(record["epoch"])), *cells])
    caption = "Measured while training, on the run's own training and validation splits; shares in per cent."
    head = ["epoch", "number", *(f"{split} {measure.replace('_', ' ')}" for split, measure in columns.values())]
    return Table(caption, head, rows)
