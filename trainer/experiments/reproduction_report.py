"""The page of a reproduction: the thesis's chapters 4 and 5, table by table and figure by figure, ours beside its."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.disk import replace_through
from trainer.experiments.reproduction_results import read_reproduction, summarize_reproduction
from trainer.experiments.reproduction_tables import (
    conditional_tables,
    counts_table,
    environment_table,
    few_shot_tables,
    site_table,
    stain_tables,
)
from trainer.experiments.sweep_sections import score_sections
from trainer.experiments.sweep_thesis import published
from trainer.loop.log import read_records
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.evaluation import SavedEvaluation, own_test_evaluation
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
from trainer.tasks.stain.report import last_sheets

_LOSSES = ("critic", "penalty", "adversarial", "cycle", "identity", "loss")
# The arms whose accuracy stands at the head of the page.
_HEADLINE = ("full", "original")


def write_reproduction_report(folder: Path) -> Path:
    """Write FOLDER/report.html and results.json from the runs that are there; returns the first.

    UserError where the folder is no reproduction, or something in it is missing or damaged.
    """
    plan, summary = read_reproduction(folder), summarize_reproduction(folder)
    replace_through(folder / "results.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    sections = [
        _data(summary),
        _stain(folder, plan, summary),
        _conditional(folder, plan, summary),
        _few_shot(folder, plan, summary),
        *_classifiers(folder, summary),
        *_renamed("Ablation", score_sections(summary["ablation"])),
        _sites(summary),
        _leaks(summary["audit"]),
        _what_was_run(folder, plan),
    ]
    subtitle = (
        "A. Hazra's thesis of 2022, chapters 4 and 5. Scores are on real test images, with 95 % intervals over groups; "
        "no generated image is among them. The thesis's numbers are of its own data, sizes and training times."
    )
    return write_page(
        folder / "report.html", f"Reproduction, preset {summary['preset']}", subtitle, [*_head(summary)], sections
    )


def _head(summary: Mapping[str, Any]) -> list[Block]:
    data, roles = summary["dataset"], summary["roles"]
    arms = {arm["arm"]: arm for arm in summary["ablation"]["arms"]}
    tiles = []
    for name in _HEADLINE:
        if name in arms:
            theirs = published("ablation", name)
            accuracy = Estimate(**arms[name]["scores"]["overall"]["accuracy"])
            label = f"{arms[name]['title']}: accuracy (thesis {theirs.accuracy})" if theirs else arms[name]["title"]
            tiles.append(Tile(label, accuracy.format(), accuracy.interval()))
    noted = [Text(summary["note"], warning=True)] if summary["note"] else []
    return [
        *noted,
        Facts(
            [
                ("data set", f"{Path(data['path']).name} (content {data['content_hash'][:12]})"),
                ("stains", f"A is {summary['stains'][0]}, B {summary['stains'][1]}"),
                ("types", "; ".join(f"{kind}: {', '.join(roles[kind]) or 'none'}" for kind in ("moderate", "rare"))),
            ]
        ),
        Tiles(tiles),
    ]


def _data(summary: Mapping[str, Any]) -> Section:
    intro = "Real images, split by patient or slide before anything is made of them."
    return Section("Data (table 6)", intro, [counts_table(summary), environment_table(summary["machine"])])


def _stain(folder: Path, plan: Mapping[str, Any], summary: Mapping[str, Any]) -> Section:
    blocks = stain_tables(summary)
    run = folder / plan["models"]["stain"]["w_cyclegan_gp"]["run"]
    steps = [record for record in read_records(run) if record["kind"] == "step"]
    if steps:
        names = [name for name in _LOSSES if name in steps[-1]]
        blocks.append(
            Figure(figures.loss_terms(steps, names, "stain-losses"), "Figure 40: losses before their weights.")
        )
    for model, place in plan["models"]["stain"].items():
        for path in last_sheets(folder / place["run"]):
            words = path.stem.split("-", 2)[2].replace("-", " ")
            caption = f"{model}, {words}: real, normalised and brought back; figures 41-46."
            # All directions of the proposed one, of rivals the one that the thesis's rule uses most.
            if model == "w_cyclegan_gp" or words.endswith(f"to {summary['stains'][0]}"):
                blocks.append(sheet_figure(path, caption))
    return Section("Stain normalisation (tables 13-16, figures 40-46)", "W-CycleGAN-GP and its rivals.", blocks)


def _conditional(folder: Path, plan: Mapping[str, Any], summary: Mapping[str, Any]) -> Section:
    blocks = conditional_tables(summary)
    for model, place in plan["models"]["conditional"].items():
        for path in last_sheets(folder / place["run"]):
            blocks.append(sheet_figure(path, f"{model}: real images left, generated ones right; figure 47."))
    intro = "C-WGAN-GP and its rivals, on types with hundreds of images."
    return Section("Conditional generation (tables 17-20, figure 47)", intro, blocks)


def _few_shot(folder: Path, plan: Mapping[str, Any], summary: Mapping[str, Any]) -> Section:
    blocks = few_shot_tables(summary)
    for cell_type in summary["models"]["few_shot"]["few_shot_meta"]["record"]["per_type"]:
        name = cell_type.replace(" ", "-")
        samples = folder / plan["models"]["few_shot"]["few_shot_meta"]["run"] / "samples"
        for kind, words in (("step", "steps of meta-training"), ("round", "rounds of the adaptation")):
            for path in sorted(samples.glob(f"{name}-{kind}-*.png")):
                count = int(path.stem.rpartition("-")[2])
                blocks.append(sheet_figure(path, f"{cell_type} after {count} {words}; figures 48-50."))
    intro = "The meta-learned generator and its rivals, on types with dozens of images."
    return Section("Few-shot generation (tables 21-22, figures 48-50)", intro, blocks)


def _classifiers(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """Figures 51-57 and table 24."""
    sections = []
    trials = {trial["arm"]: trial for trial in reversed(summary["ablation"]["trials"])}  # of the first seed
    full = _own_test(folder, trials, "full")
    if full is not None:
        run, evaluation = full
        epochs = [record for record in read_records(run) if record["kind"] == "epoch"]
        caption = "Figure 51: accuracy and loss of training and validation images after each epoch, full method."
        blocks: list[Block] = [Figure(figures.training_curves(epochs), caption)]
        original = _own_test(folder, trials, "original")
        if original is not None:
            scores = original[1].record.scores
            caption = f"Figure 53: original data ({data_words(original[1].record)})."
            blocks.append(Figure(figures.per_type_bars(scores, "original"), caption))
        sections.append(Section("The classifier (figures 51 and 53)", "SENet-GE, of the first seed.", blocks))
        section = evaluation_section(evaluation)
        sections.append(dataclasses.replace(section, title="The classifier on balanced data (figures 54-57)"))
    return [*sections, *_renamed("Classifiers compared (figure 52, table 24)", score_sections(summary["comparison"]))]


def _own_test(folder: Path, trials: Mapping[str, Any], arm: str) -> tuple[Path, SavedEvaluation] | None:
    if arm not in trials:
        return None
    run = folder / "ablation" / trials[arm]["run"]
    own = own_test_evaluation(run)
    return (run, own) if own is not None else None


def _sites(summary: Mapping[str, Any]) -> Section:
    to, of = summary["stains"]
    blocks: list[Block] = [
        site_table(summary),
        Text(
            f"A classifier of one laboratory on the other's images. The translator has seen training images of both "
            f"({to} and {of}), without their labels but for matching cells of one type; C-WGAN-GP learned from the one "
            "laboratory's images alone. The thesis has no such table."
        ),
    ]
    return Section("Between two laboratories", "With and without each part of the method.", blocks)


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


def _what_was_run(folder: Path, plan: Mapping[str, Any]) -> Section:
    reports = [("ablation", "ablation/report.html"), ("comparison", "comparison/report.html")]
    for kind, models in plan["models"].items():
        for model, place in models.items():
            reports.append((f"{kind.replace('_', '-')} {model}", f"{place.get('bank', place['run'])}/report.html"))
    there = [(name, address) for name, address in reports if (folder / address).is_file()]
    config = json.dumps(plan["config"], indent=1)
    blocks: list[Block] = [Links("Reports of their own:", there), Folded("The preset", config)]
    return Section("What was run", f"{len(plan['stages'])} stages and two sweeps.", blocks)


def _renamed(what: str, sections: Sequence[Section]) -> list[Section]:
    """Sections of one sweep beside those of another."""
    return [dataclasses.replace(section, title=f"{what}: {section.title}") for section in sections]
