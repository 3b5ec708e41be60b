"""Forecast of a training's duration in its first minute, from its first steps or, if these are slow, from a trial."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import torch
from torch import nn

DAY = 24 * 3600.0
# Steps are measured for _MEASURED_SECONDS. A step longer than _SLOW is reported at once, even the first one.
_MEASURED_SECONDS, _SLOW = 10.0, 15.0
_TRIAL_IMAGES = 2  # batch norm needs more than one value per channel


@dataclass(frozen=True)
class Expectation:
    """What is known of a training before its first step.

    step_seconds: seconds per step as estimated by `try_out`; None: no estimate. advice: remaining seconds -> a sentence
    that is printed if the training takes more than a day.
    """

    step_seconds: float | None = None
    advice: Callable[[float], str] | None = None


class Forecast:
    """Prints the remaining time of a training once, from its first steps; earlier, from a trial, if steps are slow.

    The first step is not counted: it allocates memory and chooses algorithms.
    """

    def __init__(
        self,
        expectation: Expectation,
        *,
        step: int,
        total_steps: int,
        epoch_steps: int,
        may_end_early: bool,
        say: Callable[[str], None],
    ) -> None:
        """step: the step that the training starts from. say: prints a line."""
        self._step, self._total_steps, self._epoch_steps = step, total_steps, epoch_steps
        self._advice, self._say = expectation.advice, say
        self._resumed, self._may_end_early = step > 0, may_end_early
        self._first, self._told = True, step >= total_steps
        self._steps, self._seconds = 0, 0.0
        self._scoring: float | None = None
        tried = expectation.step_seconds
        if tried is not None and tried > _SLOW and not self._told:
            self._tell(tried, f"estimated from a trial on {_TRIAL_IMAGES} images, to be measured on the first steps")
        self._mark = time.perf_counter()

    def step_done(self) -> None:
        """Call after each step."""
        self._step += 1
        if self._told:
            return
        seconds, first = self._lap(), self._first
        self._first = False
        if first and seconds < _SLOW:
            return
        self._steps += 1
        self._seconds += seconds
        if self._seconds >= _MEASURED_SECONDS:
            self._told = True
            steps = f"{self._steps} step{'s' * (self._steps > 1)}"
            scored = ", without scoring" if self._scoring is None else ""
            self._tell(self._seconds / self._steps, f"measured over {steps}{scored}")

    def epoch_done(self) -> None:
        """Call after the scoring and saving of an epoch."""
        if not self._told:
            self._scoring = self._lap()

    def _lap(self) -> float:
        """Seconds since the last lap, with all that a GPU was given to do meanwhile."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        return seconds

    def _tell(self, step_seconds: float, source: str) -> None:
        steps_left, scoring = self._total_steps - self._step, self._scoring or 0.0
        if steps_left <= 0:
            return
        epochs_left = math.ceil(steps_left / self._epoch_steps)
        left = steps_left * step_seconds + epochs_left * scoring
        done = datetime.now() + timedelta(seconds=left)
        what = "what is left, " if self._resumed else ""
        line = (
            f"this training takes {span(self._epoch_steps * step_seconds + scoring)} an epoch, "
            f"{'at most ' * self._may_end_early}{span(left)} for {what}{epochs_left} epoch{'s' * (epochs_left > 1)}, "
            f"until {done:%Y-%m-%d %H:%M} ({source})"
        )
        if self._advice is not None and left > DAY:
            line += f". {self._advice(left)}"
            self._advice = None  # once is enough
        self._say(line)


def try_out(network: nn.Module, image_size: int, images: int) -> float:
    """Estimate the seconds of a forward and backward pass of `images` images on the CPU, from a trial on a few."""
    with torch.random.fork_rng(devices=[]):
        tried = copy.deepcopy(network).train()
        pixels = torch.randn(_TRIAL_IMAGES, 3, image_size, image_size)
        seconds = 0.0
        for _ in range(2):
            start = time.perf_counter()
            tried(pixels).sum().backward()
            seconds = time.perf_counter() - start
            if seconds > _MEASURED_SECONDS:  # the first is right enough, and nobody waits for a second
                break
    return seconds / _TRIAL_IMAGES * images


def span(seconds: float) -> str:
    """A duration as text, such as '12 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"
