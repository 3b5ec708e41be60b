"""A sweep's folder as ablate.py leaves it, with answers that a test has made up."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.classifiers.config import ClassifierConfig
from tests.evaluations import evaluation_of
from trainer.experiments.sweep_config import SweepConfig, parameter_sets
from trainer.metrics.evaluation import ClassifierEvaluation, ScoredData, predictions_frame, save_evaluation
from trainer.metrics.records import FORMAT_VERSION
from trainer.tasks.classification.config import ClassifierRunConfig

TYPES = ("basophil", "platelet", "smudge cell")
TINY = ClassifierConfig(
    "tiny", timm_name="", block="basic", layers=(1,), widths=(8,), groups=1, reduction=2, stem_widths=(4,), ge=False
)
HASH = "5e" * 32
ARMS = ("full", "without_ge", "without_normalization", "few_shot_only", "conditional_only", "original")


def write_sweep(sweep: Path, kind: str = "ablation", reference: str | None = "full", **plan: Any) -> None:
    """sweep.json; plan: what the sweep file says."""
    sweep.mkdir(parents=True, exist_ok=True)
    plan = {"seeds": [0, 1], **plan}
    if kind == "search":
        arms = [f"point{number}" for number in range(len(parameter_sets(SweepConfig(kind="search", **plan))))]
    else:
        arms = plan.get("models") or plan.get("arms") or list(ARMS)
    content = {
        "format_version": FORMAT_VERSION,
        "name": "parts", "kind": kind, "launcher": plan.pop("launcher", "train_classifier"), "reference": reference,
        "metric": "validation_balanced_accuracy", "mode": "max",
        "sweep": {"kind": kind, **plan}, "fingerprint": "ab" * 32, "arms": {arm: _title(arm) for arm in arms},
        "trials": {f"{arm}-seed{seed}": HASH for arm in arms for seed in plan["seeds"]},
    }  # fmt: skip
    (sweep / "sweep.json").write_text(json.dumps(content))


def _title(arm: str) -> str:
    return arm.replace("_", " ").capitalize()


def add_trial(sweep: Path, arm: str, seed: int, status: str = "finished", **values: Any) -> Path:
    """A trial's line, and its run directory with configuration and log; its answers are for `add_answers`."""
    name = values.pop("trial", f"{arm}-seed{seed}")
    run = sweep / "trials" / name
    line = {
        "format_version": FORMAT_VERSION,
        "trial": name, "arm": arm, "title": _title(arm), "generator_seed": None, "seed": seed,
        "parameters": {},
        "command": f"accelerate launch launchers/train_classifier.py run=again seed={seed}", "run": f"trials/{name}",
        "dataset_hash": HASH, "status": status, "seconds": 100.0 + 20 * seed, "epochs": 2,
    } | values  # fmt: skip
    run.mkdir(parents=True)
    with (sweep / "trials.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    settings = dataclasses.asdict(ClassifierRunConfig(shards="data", run=str(run), seed=seed, model=TINY))
    settings["data"]["image_size"] = 16
    content = {"cell_types": list(TYPES), "dataset_hash": HASH, "storage": {}, "normalizer": None}
    (run / "config.yaml").write_text(json.dumps(settings | content))  # JSON is YAML
    return run


def add_log(run: Path, metric: Sequence[float], seconds: float = 10.0) -> None:
    """metrics.jsonl: an epoch for each value; 100 images a second in the first, 200 in the others."""
    lines = [
        {"kind": "epoch", "step": 4 * (epoch + 1), "epoch": epoch, "validation_balanced_accuracy": value,
         "seconds": seconds * (epoch + 1), "images_per_second": 100.0 if epoch == 0 else 200.0}
        for epoch, value in enumerate(metric)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def add_answers(
    run: Path,
    labels: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    groups: Sequence[str],
    *,
    normalized: bool = False,
    parents: bool = True,
    types: Sequence[str] = TYPES,
) -> ClassifierEvaluation:
    """The run's own test split: labels, predicted int64 [n]. normalized: the images are normalised ones.

    The raw image of row i is "raw i" whatever the run; parents: whether a normalised one names it.
    """
    n = len(labels)
    raw = [f"raw {i:04}" for i in range(n)]
    samples = pd.DataFrame({"id": raw, "parent": "", "source": "lab", "path": raw, "group": list(groups)})
    if normalized:
        samples["id"] = [f"{run.name} {name}" for name in raw]
        samples["parent"] = raw if parents else ""
    samples["domain"] = "giemsa"
    samples["cell_type"] = [types[label] for label in labels]
    table = np.full((n, len(types)), 0.1 / (len(types) - 1))
    table[np.arange(n), predicted] = 0.9
    normalizer = {"normalizer": "reinhard"} if normalized else None
    data = ScoredData("/data/cells", HASH, "test", ["giemsa"], n)
    record = evaluation_of(data, table, labels, list(groups), types, 0, normalizer=normalizer)
    save_evaluation(run, record, predictions_frame(samples, table, types), own_test=True)
    return record


def answers(labels: npt.NDArray[np.int64], right: float, seed: int, types: int = len(TYPES)) -> npt.NDArray[np.int64]:
    """Answers of which a share is right, the others another type at random."""
    generator = np.random.default_rng(seed)
    wrong = (labels + generator.integers(1, types, len(labels))) % types
    return np.where(generator.random(len(labels)) < right, labels, wrong)
