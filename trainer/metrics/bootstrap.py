"""Resampling of a classifier's scores over groups (patients, slides) instead of images.

Images of one group resemble each other, so resampling single images gives intervals that are too narrow.
A resample draws as many groups as there are, with replacement; every image then has its group's count as its weight,
and each score is computed from those weights, for many resamples at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CALIBRATION_BINS = 15  # of the calibration error
# Resamples computed together: few enough that their weights stay in the processor's cache.
RESAMPLES_AT_ONCE = 32


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def format(self, brackets: bool = False, factor: float = 100, digits: int = 1) -> str:
        """'97.3', with brackets '97.3 [95.1, 98.8]', in per cent by default; '-' where there is no value."""
        if self.value is None:
            return "-"
        text = f"{factor * self.value:.{digits}f}"
        if not brackets or self.low is None or self.high is None:
            return text
        return f"{text} [{factor * self.low:.{digits}f}, {factor * self.high:.{digits}f}]"

    def interval(self, factor: float = 100, digits: int = 1) -> str:
        """'95.1 to 98.8', or 'no interval'."""
        if self.low is None or self.high is None:
            return "no interval"
        return f"{factor * self.low:.{digits}f} to {factor * self.high:.{digits}f}"


@dataclass(frozen=True)
class Ranking:
    """Images of one type and the others, ordered by the type's probability."""

    type_groups: Integers  # group of each image of the type
    rest_groups: Integers  # group of each other image, by rising probability
    below: Integers  # for each image of the type: others strictly below it
    not_above: Integers  # for each image of the type: others below it or level with it


@dataclass(frozen=True)
class ScoredImages:
    """A classifier's answers to n images of C types."""

    probabilities: Floats  # [n, C]
    labels: Integers  # [n]
    predicted: Integers  # [n]
    group: Integers  # [n], 0..number_of_groups-1
    number_of_groups: int

    @cached_property
    def confidence(self) -> Floats:
        """Probability of the predicted type [n]."""
        return np.asarray(self.probabilities[np.arange(len(self.labels)), self.predicted])

    @cached_property
    def calibration_bin(self) -> Integers:
        """Bin of the highest probability [n]; one of exactly 1 belongs to the last bin."""
        bins = (self.probabilities.max(axis=1) * CALIBRATION_BINS).astype(np.int64)
        return np.minimum(bins, CALIBRATION_BINS - 1)

    @cached_property
    def confusions(self) -> Floats:
        """Confusion counts of each group [groups, C, C], true type in rows."""
        types = self.probabilities.shape[1]
        counts = np.zeros((self.number_of_groups, types, types))
        np.add.at(counts, (self.group, self.labels, self.predicted), 1.0)
        return counts

    @cached_property
    def rankings(self) -> list[Ranking]:
        """A `Ranking` for each type."""
        return [self._ranking(kind) for kind in range(self.probabilities.shape[1])]

    def _ranking(self, kind: int) -> Ranking:
        is_type = self.labels == kind
        of_type, of_rest = self.probabilities[is_type, kind], self.probabilities[~is_type, kind]
        order = np.argsort(of_rest, kind="stable")
        ordered = of_rest[order]
        return Ranking(
            type_groups=self.group[is_type],
            rest_groups=self.group[~is_type][order],
            below=np.searchsorted(ordered, of_type, side="left"),
            not_above=np.searchsorted(ordered, of_type, side="right"),
        )

    @property
    def once(self) -> "Resamples":
        """Every group once: the images as they are, b = 1."""
        return Resamples(self, np.ones((self.number_of_groups, 1)))

    def resamples(self, count: int, seed: int) -> Iterator["Resamples"]:
        """Yield `count` bootstrap resamples over groups, RESAMPLES_AT_ONCE at a time."""
        for weights in group_weights(self.number_of_groups, count, seed):
            yield Resamples(self, weights)

    def bootstrap(self, values: Callable[["Resamples"], Floats], count: int, seed: int) -> tuple[Floats, Floats | None]:
        """Values [...] of the images as they are, and [count, ...] of resamples; None where groups cannot be resampled.

        values: of b weightings, [b, ...].
        """
        point = values(self.once)[0]
        if count < 1 or self.number_of_groups < 2:
            return point, None
        return point, np.concatenate([values(part) for part in self.resamples(count, seed)])


@dataclass(frozen=True)
class Resamples:
    """What a measure is computed from: images, and b weightings of their groups."""

    images: ScoredImages
    weights: Floats  # [groups, b]: how often each group was drawn

    @cached_property
    def confusion(self) -> Floats:
        """Weighted confusion counts [b, C, C], true type in rows."""
        of_groups = self.images.confusions
        flat = self.weights.T @ of_groups.reshape(len(of_groups), -1)
        return flat.reshape(-1, *of_groups.shape[1:])

    @cached_property
    def count(self) -> Floats:
        """Images drawn [b]."""
        return np.asarray(self.confusion.sum(axis=(1, 2)))

    def mean(self, values: Floats) -> Floats:
        """Mean [b] of a value of each image [n]."""
        of_groups = np.bincount(self.images.group, values, self.images.number_of_groups)
        return np.asarray(self.weights.T @ of_groups / self.count)


def group_weights(number_of_groups: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield weights [groups, b], how often each group is drawn, for b resamples at a time, `resamples` in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        width = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = generator.integers(number_of_groups, size=(width, number_of_groups))
        cell = drawn + np.arange(width)[:, None] * number_of_groups
        counts = np.bincount(cell.ravel(), minlength=width * number_of_groups)
        # One row per group, so that looking up an image's weights copies one contiguous row.
        yield np.ascontiguousarray(counts.reshape(width, number_of_groups).T, dtype=np.float64)


def all_right_lower_bound(groups: NDArray[np.generic], confidence: float = 0.975) -> float:
    """Lower bound of the mean sensitivity when every image of every type was right.

    A bootstrap of right answers alone gives [1, 1] however few they are. The exact (Clopper-Pearson) bound
    is the lowest mean of p_t with prod p_t^groups_t >= 1 - confidence, where groups_t is the number of groups
    of type t; for one type it is (1 - confidence)^(1/groups). By Lagrange, p_t = min(1, level * groups_t).
    """
    counts = np.asarray(groups, dtype=np.float64)
    budget = -np.log(1 - confidence)
    low, high = 0.0, 1.0 / counts.min()
    for _ in range(100):
        level = (low + high) / 2
        spent = np.sum(counts * np.maximum(0.0, -np.log(level * counts)))
        low, high = (level, high) if spent > budget else (low, level)
    return float(np.minimum(1.0, high * counts).mean())


def interval(value: float, draws: Floats | None, trials: Floats | None) -> Estimate:
    """95 % interval: percentiles of the draws; the exact binomial bound for `trials` if all draws are 0, or all 1.

    draws: None, no interval.
    """
    if draws is None:
        return Estimate(value)
    draws = draws[~np.isnan(draws)]
    if draws.size and np.ptp(draws) > 1e-12:
        low, high = np.percentile(draws, [2.5, 97.5])
        return Estimate(value, float(low), float(high))
    if trials is not None and value in (0.0, 1.0):
        bound = all_right_lower_bound(trials)
        return Estimate(value, bound, 1.0) if value else Estimate(value, 0.0, 1 - bound)
    return Estimate(value)
