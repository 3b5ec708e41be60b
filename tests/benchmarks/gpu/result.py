"""A classifier trained on real images for as many passes as there is time for, with its score and its report."""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.stream import Stream, Topology
from launchers.console import read_config
from tests.benchmarks.gpu.data import CELLS
from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.rows import Record, Row, measure_rows
from tests.benchmarks.own_training import train_laps
from trainer.classifier_config import ClassifierRunConfig
from trainer.classifier_training import known_cell_types, train_classifier, training_stream
from trainer.progress import read_records
from trainer.run_directory import CONFIG_FILE, read_run_config
from trainer.topology import join_processes

# Of the seconds left, what training may take: the rest is for validation, checkpoints, and speeds that were not met.
_TRAINING_SHARE = 0.7
# The test images, the calibration, the report.
_SCORING_SECONDS = 20.0
_ROW_SECONDS = 45.0
# Steps of a lap of the trial that says how fast it goes.
_TRIAL_STEPS = 3


def measure(options: Options, record: Record, deadline: float, say: Callable[[str], None]) -> None:
    """One row: the scores; the run's report and model card go to out=."""
    topology = join_processes()
    row = Row(options.result_model, partial(_train, options, topology, deadline, say), _ROW_SECONDS)
    measure_rows([row], record, deadline, say)


def _train(options: Options, topology: Topology, deadline: float, say: Callable[[str], None]) -> dict[str, Any]:
    run = options.work_folder / "result"
    overrides = [
        f"shards={(Path(options.data) / CELLS).resolve()}",
        f"run={run.resolve()}",
        f"model={options.result_model}",
        f"data.image_size={options.image_size}",
        f"data.domains=[{options.result_domain}]",
        f"train.global_batch={options.batch}",
        f"train.precision={options.precision}",
        *([f"model.weights={Path(options.weights).resolve()}"] if options.weights else []),
        *options.result_overrides,
    ]
    begun = run / CONFIG_FILE
    # A run that was cut off goes on with the passes that it was begun with: its schedule follows from them.
    if begun.exists():
        epochs = read_run_config(run)["train"]["epochs"]
    else:
        epochs = options.result_passes or _epochs(overrides, topology, deadline)
    say(f"{epochs} passes")
    report = train_classifier(
        read_config(ClassifierRunConfig, "train_classifier", [*overrides, f"train.epochs={epochs}"]), topology
    )
    for file in (report, run / "model_card.md"):
        shutil.copyfile(file, Path(options.out) / file.name)
    scores = json.loads((run / "evaluation" / "metrics.json").read_text())
    passes = [entry for entry in read_records(run) if entry["kind"] == "epoch"]
    accuracy = scores["scores"]["accuracy"]
    return {
        "accuracy": accuracy["value"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "epochs": epochs,
        "training_seconds": round(sum(entry["seconds"] for entry in passes), 1),
        "evaluation": scores,
        "epoch_records": passes,
    }


def _epochs(overrides: list[str], topology: Topology, deadline: float) -> int:
    """The passes that there is time for; one at least. UserError from what the run itself would refuse."""
    config = read_config(ClassifierRunConfig, "train_classifier", overrides)
    dataset = config.open_dataset()
    trial = Path(str(config.run)).with_name("result-trial")
    laps = train_laps(Stream, dataset, config, topology, _TRIAL_STEPS, trial)
    shutil.rmtree(trial, ignore_errors=True)
    images = training_stream(dataset, config, known_cell_types(dataset, config.data), topology).batches_per_epoch
    seconds = max(deadline - time.monotonic() - _SCORING_SECONDS, 0.0) * _TRAINING_SHARE
    return max(1, int(seconds * laps.images_per_second / (images * config.train.global_batch)))
