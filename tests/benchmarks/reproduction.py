"""Tables of a reproduction for the results page, as Markdown: its ablation, its control, its models.

usage: python -m tests.benchmarks.reproduction run=DIR out=FILE.json [beside=FILE.json]

run: of launchers/reproduce.py; after report=true also of one under way. out: results without what names this machine's
folders. beside: such a file of another preset, whose accuracies stand in a column of their own.
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.experiments.reproduction_results import ReproductionSummary
from trainer.experiments.reproduction_tables import conditional_tables, control_table, few_shot_tables, stain_tables
from trainer.experiments.summary import ArmResult
from trainer.experiments.sweep_sections import signed
from trainer.metrics.records import read_record, write_json
from trainer.reports.page import Block, Cell, Table, estimate_cell
from trainer.reports.thesis_tables import sweep_number

# Names of files, folders and commands in a summary.
_PLACES = {"dataset", "run", "bank", "command", "path", "file", "data_set", "stored", "trials"}
# What fills most of it and stands in the reports of the runs and banks.
_DETAILS = {"confusion", "reliability", "selective"}
_DETAILS_OF_MODELS = {*_DETAILS, "per_type"}


def ablation_table(arms: Sequence[ArmResult], of_thesis: bool, beside: Mapping[str, Mapping[str, str]]) -> Table:
    """beside: other preset -> arm -> its accuracy."""
    rows = []
    for arm in arms:
        seeds = f"generators {', '.join(map(str, arm.generator_seeds))}" if arm.generator_seeds else "no generator"
        apart = signed(arm.difference.overall["accuracy"]) if arm.difference else Cell("")
        scores = [estimate_cell(arm.scores.overall[name]) for name in ("accuracy", "sensitivity")]
        theirs = sweep_number("ablation", arm.arm, "accuracy") if of_thesis else "-"
        others = [Cell(accuracies.get(arm.arm, "-")) for accuracies in beside.values()]
        rows.append([Cell(arm.title, seeds), *scores, apart, *others, Cell(theirs or "-")])
    head = ["", "accuracy, %", "mean sensitivity, %", "difference in accuracy"]
    head += [*(f"`preset={name}`: accuracy" for name in beside), "thesis: accuracy"]
    return Table(f"Ablation, {arms[0].data.count} real test images.", head, rows)


def markdown(table: Table) -> str:
    """The caption, then the table; small print in brackets."""
    lines = [list(table.head), ["---"] * len(table.head)]
    lines += [[f"{each.text} ({each.small})" if each.small else each.text for each in row] for row in table.rows]
    return "\n".join([table.caption, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def without(value: Any, details: Collection[str]) -> Any:
    """A JSON value without the entries that name files and folders, and without these details."""
    if isinstance(value, dict):
        return {
            name: without(each, details)
            for name, each in value.items()
            if name not in details and (name not in _PLACES or isinstance(each, dict))
        }
    return [without(each, details) for each in value] if isinstance(value, list) else value


def tables(summary: ReproductionSummary, beside: Mapping[str, Mapping[str, str]]) -> list[Table]:
    """Those of what is done."""
    blocks: list[Block] = []
    if summary.ablation.arms:
        blocks.append(ablation_table(summary.ablation.arms, summary.ablation.of_thesis, beside))
    blocks += [control_table(summary)] if summary.controls else []
    for kind, of_kind in (("stain", stain_tables), ("conditional", conditional_tables), ("few_shot", few_shot_tables)):
        blocks += of_kind(summary) if summary.models[kind] else []
    return [block for block in blocks if isinstance(block, Table)]


def main(arguments: Sequence[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments)
    summary = read_record(ReproductionSummary, Path(options["run"]) / "results.json")
    beside = {}
    if "beside" in options:
        other = json.loads(Path(options["beside"]).read_text())
        accuracies = {arm["arm"]: arm["scores"]["overall"]["accuracy"]["value"] for arm in other["ablation"]["arms"]}
        beside = {other["preset"]: {arm: f"{100 * value:.1f}" for arm, value in accuracies.items()}}
    results = json.loads((Path(options["run"]) / "results.json").read_text())
    models = without(results.pop("models"), _DETAILS_OF_MODELS)
    write_json(Path(options["out"]), without(results, _DETAILS) | {"models": models})
    print("\n".join(map(markdown, tables(summary, beside))))
    if summary.to_run:
        print(f"Not done yet: {len(summary.to_run)} stages.")


if __name__ == "__main__":
    main(sys.argv[1:])
