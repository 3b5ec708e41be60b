"""Where a training step's time goes, by phases: on a GPU by CUDA events, which make neither host nor device wait.

What the GPU idles while the host prepares a phase's work counts to that phase.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from trainer.learners import losses
from trainer.learners.learner import Learner
from trainer.loop.algorithm import Adversarial
from trainer.loop.clock import StepClock
from trainer.runs.registry import algorithm_class, algorithm_names
from trainer.tasks.classification.algorithms.cross_entropy import CrossEntropy
from trainer.tasks.few_shot.episode import Episode, FastLearner


class PhaseClock:
    """Time of each phase; of phases within each other the innermost counts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._within = ["other"]
        self.restart()

    def restart(self) -> None:
        self._stopped = False
        # Where one phase gave way to another: its name, and when it ended.
        self._ends: list[tuple[str, Any]] = [("", self._now())]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._turn()
        self._within.append(name)
        try:
            yield
        finally:
            self._turn()
            self._within.pop()

    def stop(self) -> None:
        """What comes until the next restart does not count."""
        self._turn()
        self._stopped = True

    def shares(self) -> dict[str, float]:
        """Of all time from the last restart to the stop, or until now."""
        self.stop()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        times: Counter[str] = Counter()
        for (_, begun), (name, ended) in itertools.pairwise(self._ends):
            times[name] += begun.elapsed_time(ended) if self._device.type == "cuda" else ended - begun
        total = sum(times.values())
        return {name: round(part / total, 4) for name, part in times.most_common()}

    @property
    def outermost(self) -> bool:
        return len(self._within) == 1

    def _turn(self) -> None:
        if not self._stopped:
            self._ends.append((self._within[-1], self._now()))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


@contextmanager
def told_apart(clock: PhaseClock) -> Iterator[None]:
    """Within, trainings tell the clock their phases.

    data; for a classifier forward, backward, optimizer; for an algorithm of several learners each learner's move (its
    forward and backward passes together), penalty (without its part of the critic's backward pass), optimizer.
    """
    named: list[tuple[Any, str, Callable[..., str | None]]] = [
        (CrossEntropy, "_logits", lambda *_: "forward"),
        # A learner's move has its backward pass within it.
        (Learner, "backward", lambda *_: "backward" if clock.outermost else None),
        (Learner, "step", lambda *_: "optimizer"),
        (Learner, "set_gradient", lambda *_: "optimizer"),
        (FastLearner, "move", lambda *_: "backward and optimizer of the inner loop"),
        (losses, "gradient_penalty", lambda *_: "penalty"),
        # "critics" of two domains are one learner.
        (Adversarial, "_move", lambda algorithm, name, *_: name.removesuffix("s")),
    ]
    for name in algorithm_names("few_shot"):
        algorithm_class("few_shot", name)  # imported, so that Episode knows it
    for algorithm in _all_kinds(Episode):
        for method, name in (("discriminator_terms", "discriminator"), ("generator_terms", "generator")):
            if method in vars(algorithm) and not getattr(vars(algorithm)[method], "__isabstractmethod__", False):
                named.append((algorithm, method, lambda *_, name=name: name))
    with ExitStack() as patches:
        for owner, method, name_of in named:
            patches.enter_context(mock.patch.object(owner, method, _timed(getattr(owner, method), name_of, clock)))
        patches.enter_context(mock.patch.object(StepClock, "waiting", _timed_waiting(StepClock.waiting, clock)))
        yield


def _all_kinds(kind: type) -> Iterator[type]:
    yield kind
    for sub in kind.__subclasses__():
        yield from _all_kinds(sub)


def _timed(function: Callable[..., Any], name_of: Callable[..., str | None], clock: PhaseClock) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        name = name_of(*arguments)
        if name is None:
            return function(*arguments, **named)
        with clock.phase(name):
            return function(*arguments, **named)

    return timed


def _timed_waiting(waiting: Callable[..., Any], clock: PhaseClock) -> Callable[..., Any]:
    def timed(step_clock: StepClock, batches: Any) -> Iterator[Any]:
        iterator = iter(waiting(step_clock, batches))
        while True:
            with clock.phase("data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    return timed
