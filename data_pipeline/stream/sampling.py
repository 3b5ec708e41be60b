"""The global order of samples as a pure function (contract C6).

An order answers one question: which row of the sample table stands at position p of
epoch e. Positions are counted over all processes; who reads which of them is decided
afterwards by `rank_slice`, so the number of processes never changes the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_pipeline.randomness import derive_key, permute, uniform

Rows = npt.NDArray[np.int64]


class Order(Protocol):
    """An epoch's sequence of rows."""

    @property
    def epoch_size(self) -> int:
        """How many positions an epoch has."""

    def rows(self, epoch: int, positions: Rows) -> Rows:
        """Rows of the sample table at these positions, each in [0, epoch_size), of one epoch."""


@dataclass(frozen=True)
class SequentialOrder:
    """Every row once, as it stands in the table: the order for scoring."""

    epoch_size: int

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return positions


@dataclass(frozen=True)
class UniformOrder:
    """Every row once an epoch, in a new random order each epoch; any position at equal cost."""

    epoch_size: int
    seed: int

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return permute(derive_key(self.seed, "uniform order", epoch), positions, self.epoch_size)


class WindowedOrder:
    """Every row once an epoch, near neighbours from few shards: for stores that read best in sequence.

    Shards come in a new random order each epoch; the sequence of their samples is cut into
    windows and each window is shuffled. About `window` samples of consecutive shards are
    in use at a time.
    """

    def __init__(self, shards: Sequence[str] | pd.Series, seed: int, window: int) -> None:
        """`shards`: the shard of each row; rows of one shard are read in the table's order."""
        shard_of_row, names = pd.factorize(pd.Series(shards), sort=True)
        self.epoch_size = len(shard_of_row)
        self._rows_by_shard = np.argsort(shard_of_row, kind="stable")
        self._counts = np.bincount(shard_of_row, minlength=len(names))
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._seed = seed
        self._window = window

    def rows(self, epoch: int, positions: Rows) -> Rows:
        first = positions // self._window * self._window
        sizes = np.minimum(self._window, self.epoch_size - first)
        sequence = np.empty_like(positions)
        for start in np.unique(first):
            inside = first == start
            key = derive_key(self._seed, "window", epoch, int(start))
            sequence[inside] = start + permute(key, positions[inside] - start, int(sizes[inside][0]))
        shard_key = derive_key(self._seed, "shard order", epoch)
        shard_order = permute(shard_key, np.arange(len(self._counts)), len(self._counts))
        ends = np.cumsum(self._counts[shard_order])
        place = np.searchsorted(ends, sequence, side="right")
        within = sequence - (ends[place] - self._counts[shard_order[place]])
        return self._rows_by_shard[self._starts[shard_order[place]] + within]


class ClassBalancedOrder:
    """Every class equally often: each run of as many positions as there are classes holds one of each.

    The draws of a class walk through random permutations of its rows, so a class of fifteen
    images repeats them evenly and a class of thousands repeats none before all were seen.
    Which class stands at a position depends on the seed, the number of classes and the epoch's
    size alone: orders over different rows that share these three are matched by class.
    """

    def __init__(self, labels: npt.ArrayLike, seed: int, epoch_size: int | None = None) -> None:
        """`labels`: the class index of each row, all >= 0. `epoch_size`: positions of an epoch; None: the rows'."""
        labels = np.asarray(labels)
        self._rows_by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.epoch_size = len(labels) if epoch_size is None else epoch_size
        self._seed = seed

    def rows(self, epoch: int, positions: Rows) -> Rows:
        classes = len(self._rows_by_class)
        draws = epoch * self.epoch_size + positions
        turns, places = np.divmod(draws, classes)
        shuffled = uniform(derive_key(self._seed, "class order"), turns, classes).argsort(axis=1)
        chosen = shuffled[np.arange(len(turns)), places]
        result = np.empty_like(draws)
        for label in np.unique(chosen):
            members = self._rows_by_class[label]
            inside = chosen == label
            walks, steps = np.divmod(turns[inside], len(members))
            found = np.empty_like(steps)
            for walk in np.unique(walks):
                key = derive_key(self._seed, "class walk", int(label), int(walk))
                found[walks == walk] = permute(key, steps[walks == walk], len(members))
            result[inside] = members[found]
        return result


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """The part of a batch of `size` that one process takes; parts differ by one sample at most."""
    return slice(size * rank // world_size, size * (rank + 1) // world_size)
