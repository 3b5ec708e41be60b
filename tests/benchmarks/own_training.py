"""Training throughput: the trainer's own loop on the stream, and on one batch that already lies on the device."""

import contextlib
import io
import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.stream.stream import MicroBatch, Stream, Topology
from launchers.console import read_config
from tests.benchmarks.timing import cpu_seconds, paired_ratio, summary
from trainer.learners.learner import Setting
from trainer.learners.topology import resolve_precision
from trainer.loop.fit import Plan, fit
from trainer.loop.fit_config import FitConfig
from trainer.loop.log import read_records
from trainer.loop.progress import Progress
from trainer.runs.registry import task
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.training.stream import known_cell_types

LAPS = 4


class OnDevice(Stream):
    """A stream of the same rows whose images cost nothing: one random batch, on the device already."""

    def read(self, first_batch: int = 0) -> Iterator[MicroBatch]:
        device = self._topology.device
        generator = torch.Generator(device).manual_seed(0)
        shape = (self.global_batch, 3, self.config.image_size, self.config.image_size)
        images = torch.rand(shape, generator=generator, device=device) * 2 - 1
        batch = first_batch
        while True:
            for rows, positions in self.parts_of(batch):
                labels = torch.from_numpy(self.labels[rows]).to(device)
                yield MicroBatch(images[: len(rows)], labels, rows, positions, batch, self.parts)
            batch += 1


def training_throughput(
    dataset: Dataset,
    overrides: list[str],
    topology: Topology,
    *,
    seconds: float,
    repeats: int,
    scratch: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Images per second of training from the stream and from the device, in turns; and their ratio.

    overrides: of the classifier's run configuration, as its launcher takes them.
    """
    config = read_config(ClassifierRunConfig, "train_classifier", overrides)
    kinds = {"stream": Stream, "synthetic": OnDevice}
    # As many steps as fill the time, however fast the device is.
    speed = train_speed(OnDevice, dataset, config, topology, 1, scratch / "trial")
    lap_steps = max(1, math.ceil(seconds * speed / config.train.global_batch / LAPS))
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with tqdm(total=repeats * len(kinds), desc="training", disable=not progress) as bar:
        for repeat in range(repeats):
            # Each in turn goes first.
            for name in sorted(kinds, reverse=repeat % 2 == 1):
                run = scratch / f"{name}-{repeat}"
                found[name].append(train_speed(kinds[name], dataset, config, topology, lap_steps, run))
                bar.update()
    return {
        "model": config.model.name,
        "image_size": config.data.image_size,
        "global_batch": config.train.global_batch,
        "steps_measured": lap_steps * LAPS,
        "images_per_second": {name: summary(values, 1) for name, values in found.items()},
        "ratios": {"stream / synthetic": paired_ratio(found["stream"], found["synthetic"])},
    }


def train_speed(
    kind: type[Stream], dataset: Dataset, config: ClassifierRunConfig, topology: Topology, lap_steps: int, run: Path
) -> float:
    """Images per second of some laps of the real loop, after one that is left out."""
    return train_laps(kind, dataset, config, topology, lap_steps, run).images_per_second


@dataclass(frozen=True)
class Laps:
    """What some laps of a loop came to.

    cpu_ms: processor time of an image, all threads and processes together: where other work is done on the machine, it
    says more than the clock. data_wait: share of the time spent waiting for data; None of a loop that does not tell.
    """

    images_per_second: float
    cpu_ms: float
    data_wait: float | None = None


class _Measured(Exception):
    """Ends the loop before it writes a checkpoint, which is no part of a step."""


def train_laps(
    kind: type[Stream], dataset: Dataset, config: ClassifierRunConfig, topology: Topology, lap_steps: int, run: Path
) -> Laps:
    """Some laps of the real loop, after one that is left out."""
    steps = (1 + LAPS) * lap_steps
    precision = resolve_precision(config.train.precision, topology.device)
    cell_types = known_cell_types(dataset, config.data)
    stream = kind(
        dataset,
        config.data,
        splits=SPLITS,
        cell_types=cell_types,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        training=True,
        topology=topology,
    )
    torch.manual_seed(0)
    setting = Setting(precision, steps, config.train.global_batch, topology=topology)
    algorithm = task("classification").build(config, len(cell_types), setting)
    length = FitConfig(
        epochs=1,
        iterations_per_epoch=steps,
        global_batch=config.train.global_batch,
        checkpoint_every=steps,
        log_every=lap_steps,
    )
    times: list[float] = []
    step, numbers = algorithm.step, itertools.count()

    def timed_step(*arguments: Any, **named: Any) -> Any:
        if next(numbers) == lap_steps:
            times.append(cpu_seconds())
        return step(*arguments, **named)

    def stop(_: int) -> dict[str, float]:
        times.append(cpu_seconds())
        raise _Measured

    plan = Plan(run=run, config=length, setting=setting, epoch_steps=steps, fingerprint={}, score_epoch=stop)
    with (
        mock.patch.object(algorithm, "step", timed_step),
        contextlib.redirect_stderr(io.StringIO()),  # no progress bar
        contextlib.suppress(_Measured),
    ):
        fit(algorithm, {"train": stream}, plan, Progress())
    laps = [record for record in read_records(run) if record["kind"] == "step"][1:]
    return Laps(
        statistics.harmonic_mean([lap["images_per_second"] for lap in laps]),
        1000 * (times[1] - times[0]) / (LAPS * lap_steps * config.train.global_batch),
        statistics.mean([lap["data_wait"] for lap in laps]),
    )
