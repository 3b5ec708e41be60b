"""What a reproduction found, as one table of plain values: read from the runs that its reproduction.json names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from trainer.experiments.machine import describe_machine
from trainer.experiments.reproduction import AUDIT_FILE, PLAN_FILE
from trainer.experiments.summary import summarize
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.log import logged_seconds, read_records
from trainer.metrics.classification import score
from trainer.metrics.evaluation import PROBABILITY, load_evaluations


def read_reproduction(folder: Path) -> dict[str, Any]:
    """The folder's reproduction.json. UserError where there is none, or it is damaged."""
    path = folder / PLAN_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no {PLAN_FILE} there: give run=DIR of reproduce.py")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): run reproduce.py again to have it written anew") from error


def summarize_reproduction(folder: Path) -> dict[str, Any]:
    """All that is known, as JSON can hold it.

    "counts": real images by type, split and stain. "models": kind -> model -> its "record" of evaluate.py and its
    "cost". "ablation", "comparison": of `trainer.experiments.summary.summarize`. "sites": for each arm, stains
    learned from and stain scored, the scores of all seeds. "audit": of audit.py. "machine": that put it together.
    """
    plan = read_reproduction(folder)
    return {
        **{name: plan[name] for name in ("preset", "dataset", "stains", "roles")},
        "note": plan["config"]["note"],
        "machine": describe_machine(),
        "counts": _counts(Dataset.open(plan["dataset"]["path"])),
        "models": {
            kind: {name: _model(folder, place) for name, place in models.items()}
            for kind, models in plan["models"].items()
        },
        **{name: summarize(folder / name) for name in ("ablation", "comparison")},
        "sites": _sites(folder, plan),
        "audit": json.loads((folder / AUDIT_FILE).read_text(encoding="utf-8")),
    }


def _counts(dataset: Dataset) -> dict[str, dict[str, dict[str, int]]]:
    """Cell type -> stain -> split -> kept images with that label."""
    rows = dataset.samples(columns=["cell_type", "domain", "split"])
    found = rows.value_counts(["cell_type", "domain", "split"])
    domains = sorted(rows["domain"].unique())
    return {
        name: {domain: {split: int(found.get((name, domain, split), 0)) for split in SPLITS} for domain in domains}
        for name in CELL_TYPES
    }


def _model(folder: Path, place: Mapping[str, str]) -> dict[str, Any]:
    """A model's evaluation record, and what its training took."""
    run = folder / place["run"]
    records = sorted((folder / place.get("bank", place["run"]) / "evaluation").glob("*.json"))
    if not records:
        raise UserError(f"{run}: not scored: run reproduce.py again")
    return {
        **place,
        "record": json.loads(records[-1].read_text(encoding="utf-8")),
        "cost": {"seconds": _seconds(run), "steps": _steps(run), "parameters": _parameters(run)},
    }


def _logs(run: Path) -> list[Path]:
    """The run, and what it adapted to rare types."""
    return [run, *sorted((run / "adapted").glob("*"))]


def _seconds(run: Path) -> float:
    return sum(logged_seconds(log) for log in _logs(run))


def _steps(run: Path) -> int:
    """Of the training, without the adaptation."""
    return max((record["step"] for record in read_records(run)), default=0)


def _parameters(run: Path) -> dict[str, int]:
    """Network -> its weights' number."""
    for log in _logs(run):
        checkpoint = CheckpointStore(log / "checkpoints").latest()
        if checkpoint is not None:
            return {name: _count(weights) for name, weights in _networks(checkpoint.load()).items()}
    return {}


def _networks(state: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint's weights by network: of a training's learners, or of an adaptation, whose networks lie together."""
    if "learners" in state:
        return {name: learner["module"] for name, learner in state["learners"].items()}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for part in ("generators", "discriminators"):
        for key, value in state["episode"][part]["networks"].items():
            found.setdefault(key.split(".")[0], {})[key] = value
    return found


def _count(state: Mapping[str, torch.Tensor]) -> int:
    """Numbers in a state dict, without the counters and means of normalisation."""
    return sum(
        value.numel()
        for name, value in state.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )


def _sites(folder: Path, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each arm, stains learned from ("both" or one) and raw stain that was scored, seeds together.

    Of one classifier all answers to a stain's test images count, whether they were scored as the run's own test
    split, normalised in the data set, or afterwards as raw images that the run's normaliser prepares.
    """
    to, of = plan["stains"]
    raw_stain = {to: to, of: of, f"{of}_as_{to}": of}
    trainings = [*plan["sites"], *({**each, "site": "both"} for each in plan["both_sites"])]
    answers: dict[tuple[str, str, str], list[tuple[pd.DataFrame, tuple[str, ...]]]] = {}
    titles = {each["arm"]: each["title"] for each in trainings}
    for each in trainings:
        for evaluation in load_evaluations(folder / each["run"]):
            frame = evaluation.predictions
            if frame is None:
                raise UserError(
                    f"{folder / each['run']}/evaluation: {evaluation.name}.parquet is missing: score it again"
                )
            types = tuple(evaluation.record.cell_types)
            for stain, rows in frame.groupby(frame["domain"].map(raw_stain)):
                answers.setdefault((each["arm"], each["site"], str(stain)), []).append((rows, types))
    return [
        {"arm": arm, "title": titles[arm], "trained_on": site, "tested_on": stain, "scores": _score(parts)}
        for (arm, site, stain), parts in answers.items()
    ]


def _score(parts: Sequence[tuple[pd.DataFrame, tuple[str, ...]]]) -> dict[str, Any]:
    """The scores of all seeds' answers together: an image's group holds its answers of every seed."""
    types = parts[0][1]
    frame = pd.concat([rows for rows, _ in parts])
    raw = frame["parent"].where(frame["parent"] != "", frame["id"])
    groups = frame["group"].where(frame["group"] != "", raw)
    numbers = {name: number for number, name in enumerate(types)}
    found = score(
        frame[[f"{PROBABILITY}{name}" for name in types]].to_numpy(dtype=np.float64),
        frame["cell_type"].map(numbers).to_numpy(np.int64),
        groups.tolist(),
        types,
    )
    return {
        "accuracy": asdict(found["accuracy"]),
        "balanced_accuracy": asdict(found["balanced_accuracy"]),
        "groups": found.groups,
        "absent": found.absent,
        "count": len(frame) // len(parts),
        "seeds": len(parts),
        "types": len(types) - len(found.absent),
        "sensitivity": {name: asdict(row["sensitivity"]) for name, row in found.per_type.items() if row.count},
    }
