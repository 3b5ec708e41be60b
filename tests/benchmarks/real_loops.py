"""The trainings of the launchers, entered as their launchers do and left after some steps, for benchmarks."""

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState

from data_pipeline.stream.stream import Topology
from launchers.console import read_config
from trainer.loop.algorithm import Algorithm
from trainer.loop.fit import Plan
from trainer.runs import training
from trainer.runs.config import RunConfig
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.stain.config import StainRunConfig

# Launcher -> the configuration that it reads.
TRAININGS: dict[str, type[RunConfig]] = {
    "train_classifier": ClassifierRunConfig,
    "train_stain_gan": StainRunConfig,
    "train_conditional_gan": ConditionalRunConfig,
    "train_few_shot_gan": FewShotRunConfig,
}


@dataclass(frozen=True)
class Steps:
    """Steps of a training that were timed. global_batch: images of each stream that a step takes once or more."""

    seconds: float
    steps: int
    global_batch: int
    precision: str


class _Done(Exception):
    """Leaves a training's loop."""


def some_steps(
    launcher: str,
    overrides: list[str],
    topology: Topology,
    *,
    warm_up: int,
    steps: int,
    on_start: Callable[[], None] = lambda: None,
    on_end: Callable[[], None] = lambda: None,
) -> Steps:
    """Time steps of a launcher's training by its configuration; no checkpoint is written.

    overrides: as the launcher takes them, with shards= and run=. on_start, on_end: called when the warm-up is over, and
    when the last step has been given to the device.
    """
    # Accelerate holds a process to the first precision that it was asked for; the next training may have another.
    AcceleratorState._reset_state()
    length = [f"train.iterations_per_epoch={warm_up + steps + 1}", "train.epochs=1", "train.log_every=1000000"]
    config = read_config(TRAININGS[launcher], launcher, [*overrides, *length])
    original = training.fit
    found: list[Steps] = []

    def timed_fit(algorithm: Algorithm, streams: Any, plan: Plan, progress: Any) -> None:
        clock = _Clock(algorithm, warm_up, steps, topology.device, on_start, on_end)
        with mock.patch.object(type(algorithm), "step", clock.step):
            try:
                original(algorithm, streams, plan, progress)
            except _Done:
                found.append(Steps(clock.seconds, steps, config.train.global_batch, plan.setting.precision))
                raise

    with (
        mock.patch.object(training, "fit", timed_fit),
        contextlib.suppress(_Done),
        contextlib.redirect_stderr(io.StringIO()),  # its progress bar
    ):
        training.train(config, topology)
    return found[0]


class _Clock:
    """Stands in for an algorithm's step: counts, starts the time after the warm-up, and ends it all."""

    def __init__(
        self,
        algorithm: Algorithm,
        warm_up: int,
        steps: int,
        device: torch.device,
        on_start: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._step, self._device, self._on_start, self._on_end = algorithm.step, device, on_start, on_end
        self._warm_up, self._steps, self._calls = warm_up, steps, 0
        self.seconds = 0.0

    def step(self, *arguments: Any, **named: Any) -> Any:
        if self._calls in (self._warm_up, self._warm_up + self._steps):
            if self._calls > self._warm_up:
                self._on_end()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            if self._calls > self._warm_up:
                self.seconds = time.perf_counter() - self._begun
                raise _Done
            self._on_start()
            self._begun = time.perf_counter()
        self._calls += 1
        return self._step(*arguments, **named)
