"""A classifier that learns from real images for as long as there is time, with its score and its report."""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.stream.stream import Stream, Topology
from launchers.console import read_config
from tests.benchmarks.gpu.data import CELLS
from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.rows import Record, Row, measure_rows
from tests.benchmarks.own_training import train_laps
from trainer.learners.topology import join_processes
from trainer.loop.log import read_records
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.runs.training import train
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.training.stream import known_cell_types, training_stream

# The training is cut into so many portions: after each it is validated and a checkpoint is written.
_PORTIONS = 3
# Seconds of the end of a portion (SENet-154's checkpoint has 1.4 GB), of scoring and the report, of the row at least.
_PORTION_SECONDS, _SCORING_SECONDS, _ROW_SECONDS = 8.0, 20.0, 60.0
# Of the other seconds, what is planned with: a training may be slower than its trial.
_USED_SHARE = 0.85
# Steps of a lap of that trial.
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
    if (run / CONFIG_FILE).exists():
        # A run that was cut off goes on with the steps that it was begun with: its schedule follows from them.
        steps = read_run_config(run)["train"]["iterations_per_epoch"]
    else:
        steps = options.result_steps or _steps(overrides, topology, deadline)
    overrides += [f"train.epochs={_PORTIONS}", f"train.iterations_per_epoch={steps}"]
    config = read_config(ClassifierRunConfig, "train_classifier", overrides)
    images = len(_stream(config, topology).samples)
    passes = _PORTIONS * steps * options.batch / images
    say(f"{passes:.1f} passes over {images} images, {_PORTIONS} times {steps} steps")
    train(config, topology)
    for file in (run / "report.html", run / "model_card.md"):
        shutil.copyfile(file, Path(options.out) / file.name)
    scores = json.loads((run / "evaluation" / "metrics.json").read_text())
    portions = [entry for entry in read_records(run) if entry["kind"] == "epoch"]
    accuracy = scores["scores"]["overall"]["accuracy"]
    return {
        "accuracy": accuracy["value"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "training_images": images,
        "passes": round(passes, 1),
        "training_seconds": round(sum(entry["seconds"] for entry in portions), 1),
        "evaluation": scores,
        "portions": portions,
    }


def _steps(overrides: list[str], topology: Topology, deadline: float) -> int:
    """The steps of a portion that there is time for, by a short trial; one at least."""
    config = read_config(ClassifierRunConfig, "train_classifier", overrides)
    trial = Path(str(config.run)).with_name("result-trial")
    laps = train_laps(Stream, config.open_dataset(), config, topology, _TRIAL_STEPS, trial)
    shutil.rmtree(trial)
    seconds = deadline - time.monotonic() - _SCORING_SECONDS - _PORTIONS * _PORTION_SECONDS
    steps = _USED_SHARE * seconds * laps.images_per_second / config.train.global_batch
    return max(1, int(steps / _PORTIONS))


def _stream(config: ClassifierRunConfig, topology: Topology) -> Stream:
    dataset = config.open_dataset()
    return training_stream(dataset, config, known_cell_types(dataset, config.data), topology)
