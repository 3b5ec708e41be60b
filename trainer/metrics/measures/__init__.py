"""The table of a classifier's measures: a measure is one entry, in a module of this folder.

Reports, model cards, intervals, evaluation files, the scores after each epoch, `train.select_by` and the tables of
sweeps iterate over it. A module here calls `register`; it is found by being in the folder. No module here imports
torch: the names check a configuration before anything heavy is loaded.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.metrics.bootstrap import Estimate, Floats, Resamples

Place = Literal["headline", "types", "sweeps"]
EVERYWHERE: frozenset[Place] = frozenset({"headline", "types", "sweeps"})


@dataclass(frozen=True)
class Measure:
    """One measure of a classifier's answers, and how it is shown."""

    name: str  # key in evaluation files
    label: str  # of the value over all types
    of_types: Callable[[Resamples], Floats] | None = None  # values [b, C], each type against the rest
    over_all: Callable[[Resamples], Floats] | None = None  # values [b]; None: the mean of `of_types` over the types
    epoch_name: str | None = None  # in metrics.jsonl and as train.select_by; None: not computed after each epoch
    higher_is_better: bool = True
    percent: bool = True  # shown in per cent, else as it is
    bounds: tuple[float, float] = (0.0, 1.0)
    # A share of images. Where it is 0 or 1 in all resamples it has an exact binomial bound.
    proportion: bool = False
    # Which groups a type's value depends on. type: those with images of the type. rest: those with images of other
    # types. both: the fewer of these two. answers: those with predictions of the type, else as `type`. all: all groups.
    # An interval needs two groups.
    rests_on: Literal["type", "rest", "both", "answers", "all"] = "type"
    # Resampling biases the value upwards: the resampled values are shifted so that their mean is the value.
    centred: bool = False
    # Where it is shown, beside the evaluation file and the model card, which hold every measure. headline: above a
    # report and in its table of evaluations. types: in tables per type. sweeps: in tables of sweeps, where it is
    # resampled for every trial.
    shown: frozenset[Place] = EVERYWHERE

    def values(self, answers: Resamples) -> Floats:
        """Float64 [b, 1 + C]: over all types, then of each; NaN for a type without an image, or not measured."""
        confusion = answers.confusion
        of_types = np.full(confusion.shape[:2], np.nan)
        if self.of_types is not None:
            of_types = np.where(confusion.sum(axis=2) > 0, self.of_types(answers), np.nan)
        over_all = _mean_of_present(of_types) if self.over_all is None else self.over_all(answers)
        return np.concatenate([over_all[:, None], of_types], axis=1)

    @property
    def scale(self) -> tuple[float, int]:
        """What a value is multiplied by where it is shown, and its decimals: arguments of `Estimate.format`."""
        return (100, 1) if self.percent else (1, 3)

    def format(self, estimate: Estimate, brackets: bool = False) -> str:
        """'97.3', with brackets '97.3 [95.1, 98.8]'; '-' where there is no value."""
        return estimate.format(brackets, *self.scale)

    def interval(self, estimate: Estimate) -> str:
        """'95.1 to 98.8', or 'no interval'."""
        return estimate.interval(*self.scale)


_REGISTERED: dict[str, Measure] = {}


def register(measure: Measure) -> Measure:
    """Add a measure to the table. ValueError for a name that is taken, or a measure that computes nothing."""
    taken = [each.epoch_name for each in _REGISTERED.values() if each.epoch_name is not None]
    if measure.name in _REGISTERED or measure.epoch_name in taken:
        raise ValueError(f"measure {measure.name}: the name is taken")
    if measure.of_types is None and measure.over_all is None:
        raise ValueError(f"measure {measure.name}: give of_types= or over_all=")
    _REGISTERED[measure.name] = measure
    return measure


@functools.cache
def measures() -> dict[str, Measure]:
    """All measures by name: modules of this folder by name, measures as they stand in them."""
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{module}")
    return dict(_REGISTERED)


def shown(place: Place) -> list[Measure]:
    """The measures that a place shows; in "types" those that are taken of each type."""
    chosen = [measure for measure in measures().values() if place in measure.shown]
    return [measure for measure in chosen if place != "types" or measure.of_types is not None]


def epoch_measures() -> dict[str, Measure]:
    """The measures computed on validation images after each epoch, by the name that train.select_by takes."""
    return {each.epoch_name: each for each in measures().values() if each.epoch_name is not None}


def values_of(chosen: Sequence[Measure], answers: Resamples) -> Floats:
    """`Measure.values` of several, [b, measures, 1 + C]."""
    return np.stack([measure.values(answers) for measure in chosen], axis=1)


def _mean_of_present(of_types: Floats) -> Floats:
    """Mean [b] of [b, C] over the types that have a value; NaN where none has."""
    there = ~np.isnan(of_types)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, of_types, 0.0).sum(axis=1) / there.sum(axis=1))
