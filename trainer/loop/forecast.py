"""What a training will take, told in its first minute: from its first steps, or from a trial where these are slow."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import torch
from torch import nn

DAY = 24 * 3600.0
# Steps are measured for so long; one that takes longer than _SLOW is told at once, the first one too.
_MEASURED_SECONDS, _SLOW = 10.0, 15.0
_TRIAL_IMAGES = 2  # batch norm takes no mean of one


@dataclass(frozen=True)
class Expectation:
    """What is known of a training before its first step.

    step_seconds: what `try_out` makes of a step; None where nothing was tried. advice: told where it takes more than a
    day, from the seconds that are left.
    """

    step_seconds: float | None = None
    advice: Callable[[float], str] | None = None


class Forecast:
    """Tells once what the rest of a training takes, and earlier, by a trial, where its steps are slow.

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
        """step: that the training goes on from. say: takes the line."""
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
        """To be called after each step."""
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
        """To be called when an epoch's scoring and saving is over."""
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
    """Seconds for forward and backward pass of so many images on the CPU, from a trial on a few; changes no state."""
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
    """A length of time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"
