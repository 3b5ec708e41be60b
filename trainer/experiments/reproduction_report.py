"""The page of a reproduction: the thesis's chapters 4 and 5, table by table and figure by figure."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.experiments.reproduction import Reproduction
from trainer.experiments.reproduction_cells import draw_cells
from trainer.experiments.reproduction_results import ReproductionSummary, summarize_reproduction
from trainer.experiments.reproduction_tables import (
    conditional_tables,
    control_table,
    counts_table,
    environment_table,
    few_shot_tables,
    site_table,
    stain_tables,
)
from trainer.experiments.summary import SweepSummary
from trainer.experiments.sweep_sections import score_sections
from trainer.loop.log import read_records
from trainer.metrics.evaluation import SavedEvaluation, own_test_evaluation
from trainer.metrics.records import to_json, write_json
from trainer.reports import figures
from trainer.reports.evaluation_section import data_words, evaluation_section
from trainer.reports.page import (
    Block,
    Cell,
    Facts,
    Figure,
    Folded,
    Links,
    Section,
    Table,
    Text,
    Tile,
    Tiles,
    sheet_figure,
    write_page,
)
from trainer.reports.thesis_tables import sweep_number
from trainer.tasks.classification.reports.control_record import WARNING
from trainer.tasks.stain.report import last_sheets, network_losses

# Arms whose accuracy is in the head of the page.
_HEADLINE = ("full", "original")


def write_reproduction_report(plan: Reproduction) -> Path:
    """Write report.html and results.json of what is done of a reproduction; returns the first.

    UserError if its ablation has not begun, or something in it is damaged.
    """
    folder, summary = plan.folder, summarize_reproduction(plan)
    write_json(folder / "results.json", to_json(summary))
    of_models = [section_of(folder, summary) for kind, section_of in _OF_MODELS.items() if summary.models[kind]]
    sections = [
        _data(plan, summary),
        *of_models,
        *_classifiers(folder, summary),
        *_renamed("Ablation", score_sections(summary.ablation)),
        *([_control(summary)] if summary.controls else []),
        *([_sites(summary)] if summary.sites else []),
        *([_leaks(summary.audit)] if summary.audit else []),
        _what_was_run(plan, summary),
    ]
    subtitle = (
        "A. Hazra's thesis of 2022, chapters 4 and 5. Scores are on real test images, with 95 % intervals over groups; "
        "no generated image is among them. The thesis's numbers are of its own data, sizes and training times."
    )
    return write_page(
        folder / "report.html", f"Reproduction, preset {summary.preset}", subtitle, _head(summary), sections
    )


def _head(summary: ReproductionSummary) -> list[Block]:
    arms = {arm.arm: arm for arm in summary.ablation.arms}
    tiles = []
    for name in _HEADLINE:
        if name in arms:
            accuracy = arms[name].scores.overall["accuracy"]
            number = f" (thesis {sweep_number('ablation', name, 'accuracy')})" if summary.ablation.of_thesis else ""
            label = f"{arms[name].title}: accuracy{number}"
            tiles.append(Tile(label, accuracy.format(), accuracy.interval()))
    roles = {kind: ", ".join(getattr(summary.roles, kind)) or "none" for kind in ("moderate", "rare")}
    facts = [
        ("data set", f"{Path(summary.dataset).name} (content {summary.content_hash[:12]})"),
        ("stains", f"A is {summary.stains[0]}, B {summary.stains[1]}"),
        ("types", "; ".join(f"{kind}: {names}" for kind, names in roles.items())),
    ]
    noted: list[Block] = [Text(summary.note, warning=True)] if summary.note else []
    waiting = [*summary.to_run, *summary.ablation.unfinished, *summary.ablation.not_begun]
    if waiting or summary.comparison is None:
        words = (
            f"Not finished: {len(waiting)} stages and trainings of the ablation have not run, nor what follows them."
        )
        noted.append(Text(words, warning=True))
    return [*noted, Facts(facts), Tiles(tiles)]


def _data(plan: Reproduction, summary: ReproductionSummary) -> Section:
    cells = plan.folder / "cells.png"
    draw_cells(cells, plan.dataset, plan.stains)
    caption = "Figures 13 and 21: cells of each type in both stains, the first by their files' hashes."
    blocks: list[Block] = [counts_table(summary), sheet_figure(cells, caption), environment_table(summary.machine)]
    intro = "Real images, split by patient or slide before anything is made of them."
    return Section("Data (table 6, figures 13 and 21)", intro, blocks)


def _stain(folder: Path, summary: ReproductionSummary) -> Section:
    blocks, models = stain_tables(summary), summary.models["stain"]
    own = next(iter(models))
    if steps := read_records(folder / models[own].run, "step"):
        blocks += network_losses(steps)
    for name, model in models.items():
        for path in last_sheets(folder / model.run):
            words = path.stem.split("-", 2)[2].replace("-", " ")
            # Both directions of the method's own model; of rivals the one into the stain that all images get.
            if name == own or words.endswith(f"to {summary.stains[0]}"):
                caption = f"{name}, {words}: real, normalised and brought back; figures 41-46."
                blocks.append(sheet_figure(path, caption))
    return Section("Stain normalisation (tables 13-16, figures 40-46)", "W-CycleGAN-GP and its rivals.", blocks)


def _conditional(folder: Path, summary: ReproductionSummary) -> Section:
    blocks = conditional_tables(summary)
    for name, model in summary.models["conditional"].items():
        for path in last_sheets(folder / model.run):
            blocks.append(sheet_figure(path, f"{name}: real images left, generated ones right; figure 47."))
    intro = "C-WGAN-GP and its rivals, on types with hundreds of images."
    return Section("Conditional generation (tables 17-20, figure 47)", intro, blocks)


def _few_shot(folder: Path, summary: ReproductionSummary) -> Section:
    blocks, proposed = few_shot_tables(summary), next(iter(summary.models["few_shot"].values()))
    for cell_type in proposed.evaluation.per_type:
        for kind, words in (("step", "steps of meta-training"), ("round", "rounds of the adaptation")):
            sheets = (folder / proposed.run / "samples").glob(f"{cell_type.replace(' ', '-')}-{kind}-*.png")
            for path in sorted(sheets):
                count = int(path.stem.rpartition("-")[2])
                blocks.append(sheet_figure(path, f"{cell_type} after {count} {words}; figures 48-50."))
    intro = "The meta-learned generator and its rivals, on types with dozens of images."
    return Section("Few-shot generation (tables 21-22, figures 48-50)", intro, blocks)


# Sections of the models of each kind that are scored, of ReproductionSummary.models.
_OF_MODELS = {"stain": _stain, "conditional": _conditional, "few_shot": _few_shot}


def _classifiers(folder: Path, summary: ReproductionSummary) -> list[Section]:
    """Figures 51-57 and table 24."""
    sections = []
    full = _own_test(folder, summary.ablation, "full")
    if full is not None:
        run, evaluation = full
        caption = "Figure 51: accuracy and loss of training and validation images after each epoch, full method."
        blocks: list[Block] = [Figure(figures.training_curves(read_records(run, "epoch")), caption)]
        original = _own_test(folder, summary.ablation, "original")
        if original is not None:
            record = original[1].record
            caption = f"Figure 53: original data ({data_words(record)})."
            blocks.append(Figure(figures.per_type_bars(record.scores, "original"), caption))
        sections.append(Section("The classifier (figures 51 and 53)", "SENet-GE, of the first seed.", blocks))
        title = "The classifier on balanced data (figures 54-57)"
        sections.append(dataclasses.replace(evaluation_section(evaluation), title=title))
    compared = score_sections(summary.comparison) if summary.comparison else []
    return [*sections, *_renamed("Classifiers compared (figure 52, table 24)", compared)]


def _own_test(folder: Path, ablation: SweepSummary, arm: str) -> tuple[Path, SavedEvaluation] | None:
    """The run of an arm's first seed, and the evaluation of its own test split."""
    run = next((folder / "ablation" / trial.run for trial in ablation.trials if trial.arm == arm), None)
    own = own_test_evaluation(run) if run else None
    return (run, own) if run and own else None


def _sites(summary: ReproductionSummary) -> Section:
    to, of = summary.stains
    blocks: list[Block] = [
        site_table(summary),
        Text(
            f"A classifier of one laboratory on the other's images. The translator has seen training images of both "
            f"({to} and {of}), without their labels but for matching cells of one type; C-WGAN-GP learned from the one "
            "laboratory's images alone. The thesis has no such table."
        ),
    ]
    return Section("Between two laboratories", "With and without each part of the method.", blocks)


def _control(summary: ReproductionSummary) -> Section:
    blocks: list[Block] = [
        Text(
            f"{WARNING} It shows how much of the thesis's gain the protocol alone gives. The data are those of the "
            "ablation's arms, whose generators have not seen the test images of that ablation.",
            warning=True,
        ),
        control_table(summary),
    ]
    intro = "Balanced first, split afterwards at random, synthetic and normalised images in the test set."
    return Section("The thesis's protocol, as a control", intro, blocks)


def _leaks(audit: Mapping[str, Any]) -> Section:
    rows = []
    for check in audit["checks"]:
        found = "; ".join(map(str, check["found"][:3])) if check["found"] else check["unknown"] or ""
        rows.append(
            [Cell(check["name"]), Cell(check["status"]), Cell(str(check["count"])), Cell(check["checked"], found)]
        )
    caption = "audit.py on the full method's data set and classifier."
    table = Table(caption, ["check", "result", "looked at", "what"], rows)
    warnings: list[Block] = []
    if not audit["clean"]:
        warnings.append(Text("Something was found, or could not be checked: the scores may be too good.", warning=True))
    return Section(
        "Leaks", "Whether anything that is scored is, or is like, what was learned from.", [*warnings, table]
    )


def _what_was_run(plan: Reproduction, summary: ReproductionSummary) -> Section:
    reports = [("ablation", "ablation/report.html"), ("comparison", "comparison/report.html")]
    for kind, models in summary.models.items():
        for name, model in models.items():
            reports.append((f"{kind.replace('_', '-')} {name}", f"{model.bank or model.run}/report.html"))
    links = [(name, address) for name, address in reports if (plan.folder / address).is_file()]
    preset = Folded("The preset", json.dumps(dataclasses.asdict(plan.config), indent=1))
    return Section(
        "What was run", f"{len(plan.stages)} stages and two sweeps.", [Links("Reports of their own:", links), preset]
    )


def _renamed(what: str, sections: Sequence[Section]) -> list[Section]:
    """Sections of one sweep beside those of another."""
    return [dataclasses.replace(section, title=f"{what}: {section.title}") for section in sections]
