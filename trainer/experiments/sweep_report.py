"""The page of a sweep: what its arms scored and cost, what the thesis says, what was run; and its tables as files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.disk import replace_through
from trainer.experiments.summary import summarize
from trainer.experiments.sweep_sections import duration, score_sections, search_sections
from trainer.metrics.measures import shown
from trainer.reports.page import Block, Cell, Facts, Folded, Section, Table, Text, write_page

_COSTS = ("seconds", "epochs", "images_per_second", "image_size", "parameters", "multiply_accumulates")
_COLUMNS = ("value", "low", "high")


def write_sweep_report(sweep: Path) -> Path:
    """Write SWEEP/report.html, table.csv and results.json from what has ended so far; returns the first.

    table.csv: a line for each arm over all types, then one for each type, as shares of 1; the cost of an arm stands
    in its first line. results.json: all of it, see `summarize`.
    UserError where the folder is no sweep, or a file in it is damaged.
    """
    summary = summarize(sweep)
    replace_through(sweep / "results.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    replace_through(sweep / "table.csv", _csv(summary).encode())
    scores = search_sections(summary, sweep) if summary["kind"] == "search" else score_sections(summary)
    subtitle = (
        "Scores on real test images, in per cent, with 95 % intervals over seeds and groups of images; no generated "
        "image is among them."
    )
    if summary["kind"] == "ablation":
        subtitle += " Each generator was trained once: how lucky it was is not in the intervals."
    return write_page(
        sweep / "report.html",
        f"{summary['kind'].capitalize()} {summary['name']}",
        subtitle,
        [_facts(summary), *_warnings(summary)],
        [*scores, _what_was_run(summary)],
    )


def _facts(summary: Mapping[str, Any]) -> Facts:
    statuses = [trial["status"] for trial in summary["trials"]]
    ended = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)) or "none"
    waiting = f"; {len(summary['unfinished'])} under way or cut off, {len(summary['not_begun'])} not begun"
    return Facts(
        [
            ("sweep", f"{summary['name']}, {summary['kind']} (SHA-256 {summary['fingerprint'][:12]})"),
            ("trials that ended", ended + waiting),
            ("watched", f"{summary['metric']} ({summary['mode']})"),
            ("reference", summary["reference"] or "none"),
            ("intervals", f"{summary['interval']['method']}; {summary['interval']['resamples']} resamples"),
        ]
    )


def _warnings(summary: Mapping[str, Any]) -> list[Block]:
    """Whatever of the sweep is not in its scores, by name."""
    texts = []
    for arm in summary["without_result"]:
        ended = ", ".join(f"{trial} {status}" for trial, status in arm["trials"].items()) or "none has ended"
        texts.append(f"Arm {arm['arm']} has no finished trial yet: {ended}.")
    # Those of an arm without a result are named with it.
    named = {trial for arm in summary["without_result"] for trial in arm["trials"]}
    for trial in summary["trials"]:
        given_up = trial["status"] == "stopped" and summary["kind"] == "search"
        if trial["status"] != "finished" and trial["trial"] not in named and not given_up:
            texts.append(f"Trial {trial['trial']} does not count: {trial['status']}.")
    for words, names in (("Under way or cut off", summary["unfinished"]), ("Not begun", summary["not_begun"])):
        if names:
            texts.append(f"{words}: {', '.join(names)}.")
    return [Text(text, warning=True) for text in texts]


def _what_was_run(summary: Mapping[str, Any]) -> Section:
    blocks: list[Block] = [_data_table(summary["arms"]), _trials_table(summary["trials"])] if summary["trials"] else []
    commands = "\n\n".join(f"# {trial['trial']}\n{trial['command']}" for trial in summary["trials"])
    if commands:
        blocks.append(Folded("The command that runs each trial alone", commands))
    intro = f"{len(summary['trials'])} trials that ended; a trial's command alone gives its score again."
    return Section("What was run", intro, blocks)


def _data_table(arms: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for arm in arms:
        data, normalizer = arm["data"], arm["data"]["normalizer"]
        words = "none" if normalizer is None else json.dumps(normalizer, sort_keys=True)
        rows.append(
            [
                Cell(arm["title"], arm["arm"]),
                Cell(Path(data["path"]).name, f"content {data['content_hash'][:12]}"),
                Cell(data["split"], ", ".join(data["domains"])),
                Cell(str(data["count"]), f"in {data['groups']} groups"),
                Cell(words if len(words) <= 40 else "yes", "" if len(words) <= 40 else words[:60]),
            ]
        )
    caption = "What each arm was scored on. A normalised image is a real one in another stain, and named so."
    return Table(caption, ["arm", "data set", "split, stains", "images", "normalised by"], rows)


def _trials_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for trial in trials:
        checkpoint, best = trial["checkpoint"], trial["metric"]
        rows.append(
            [
                Cell(trial["trial"]),
                Cell(str(trial["seed"])),
                Cell(trial["status"]),
                Cell("-" if trial["epochs"] is None else str(trial["epochs"])),
                Cell(duration(trial["seconds"])),
                Cell("-" if best is None else f"{best:.4f}", "" if best is None else f"epoch {trial['metric_epoch']}"),
                Cell(f"step {checkpoint['step']}", checkpoint["sha256"][:12]) if checkpoint else Cell("-"),
                Cell(trial["run"], f"data set {trial['dataset_hash'][:12]}" if trial["dataset_hash"] else ""),
            ]
        )
    head = ["trial", "seed", "status", "epochs", "training", "best on validation", "checkpoint", "run"]
    return Table("Every trial that ended.", head, rows)


def _csv(summary: Mapping[str, Any]) -> str:
    """One line for each arm and type; shares of 1."""
    measures = [measure.name for measure in shown("sweeps")]
    apart = [f"{measure}_difference" for measure in measures]
    scores = [name if column == "value" else f"{name}_{column}" for name in (*measures, *apart) for column in _COLUMNS]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["arm", "title", "cell_type", "images", "seeds", "paired_seeds", *scores, *_COSTS])
    for arm in summary["arms"]:
        other = arm["difference"] or {"paired_seeds": [], "overall": {}, "per_type": {}}
        seeds = [" ".join(map(str, names)) for names in (arm["seeds"], other["paired_seeds"])]
        of_types = arm["scores"]["per_type"]
        lines = [("all", arm["data"]["count"], arm["scores"]["overall"], other["overall"])]
        lines += [(name, row["count"], row, other["per_type"].get(name, {})) for name, row in of_types.items()]
        for cell_type, count, ours, difference in lines:
            values = [
                found.get(measure, {}).get(column)
                for found in (ours, difference)
                for measure in measures
                for column in _COLUMNS
            ]
            costs = [arm["cost"][name] if cell_type == "all" else None for name in _COSTS]
            table.writerow([arm["arm"], arm["title"], cell_type, count, *seeds, *values, *costs])
    return text.getvalue()
