"""Which samples form global batch number n: a pure function, the same on every rank.

An order says which row of the sample table stands at position p of epoch e. Positions count over all ranks; a rank
takes its part of a global batch afterwards (`rank_slice`), so the world size never changes the order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, permute, uniform

Rows = npt.NDArray[np.int64]
# Positions computed at a time: numpy's overhead per call then vanishes.
_ORDER_BLOCK = 4096


class Order(Protocol):
    """An epoch's sequence of rows."""

    @property
    def epoch_size(self) -> int:
        """Positions in an epoch."""

    def rows(self, epoch: int, positions: Rows) -> Rows:
        """Rows of the sample table at these positions, each in [0, epoch_size), of one epoch."""


@dataclass(frozen=True)
class SequentialOrder:
    """Every row once, in the order of the table: for scoring."""

    epoch_size: int

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return positions


@dataclass(frozen=True)
class UniformOrder:
    """Every row once an epoch, in a new random order each epoch; any position costs the same."""

    epoch_size: int
    seed: int

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return permute(derive_key(self.seed, "uniform order", epoch), positions, self.epoch_size)


class WindowedOrder:
    """Every row once an epoch, few shards at a time: for stores that read best in sequence.

    Shards are permuted each epoch; the sequence of their samples is cut into windows of `window` samples, and each
    window is shuffled.
    """

    def __init__(self, shards: Sequence[str] | npt.NDArray[np.int32], seed: int, window: int) -> None:
        """`shards`: the shard of each row, its name or its number among the sorted names."""
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
    """Every class equally often: of C classes, each C consecutive positions hold one sample of each.

    A class repeats no row before all of its rows were shown (random permutations, one after another).
    The class at a position depends on the seed, the number of classes and the epoch's size alone, so two orders
    over different rows with equal values of these show the same class at the same position.
    """

    def __init__(self, labels: npt.ArrayLike, seed: int, epoch_size: int | None = None) -> None:
        """`labels`: class index >= 0 of each row. `epoch_size`: positions in an epoch; None: as many as rows."""
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
            result[inside] = members[_walk(self._seed, "class walk", int(label), turns[inside], len(members))]
        return result


class DomainBalancedOrder:
    """Every class equally often, and within a class every domain, as far as no image is repeated too often.

    An image is drawn at most `most_repeats` times as often as the others of its class: a domain of few images is then
    drawn less often. An epoch is about as long as the table, in a new random order each time. Of one class and domain,
    no image is drawn again before all were.
    """

    def __init__(self, labels: npt.ArrayLike, domains: npt.ArrayLike, seed: int, most_repeats: float) -> None:
        """`labels`, `domains`: class and domain of each row. `most_repeats`: at least 1."""
        labels, domains = np.asarray(labels), np.asarray(domains)
        classes = np.unique(labels)
        self._seed = seed
        self._members: list[Rows] = []  # rows of each class and domain
        counts: list[float] = []  # their draws in an epoch
        for label in classes:
            of_class = labels == label
            members = [np.flatnonzero(of_class & (domains == domain)) for domain in np.unique(domains[of_class])]
            sizes = np.array(list(map(len, members)))
            weights = np.minimum(sizes.max(), most_repeats * sizes)
            self._members += members
            counts += (len(labels) / len(classes) * weights / weights.sum()).tolist()
        self._counts = np.ceil(counts).astype(np.int64)
        self._ends = self._counts.cumsum()
        self.epoch_size = int(self._ends[-1])

    def rows(self, epoch: int, positions: Rows) -> Rows:
        places = permute(derive_key(self._seed, "domain order", epoch), positions, self.epoch_size)
        chosen = np.searchsorted(self._ends, places, side="right")
        # How often the class and domain was drawn before, in this order.
        turns = (epoch + 1) * self._counts[chosen] + places - self._ends[chosen]
        result = np.empty_like(positions)
        for cell in np.unique(chosen):
            members, inside = self._members[cell], chosen == cell
            result[inside] = members[_walk(self._seed, "domain walk", int(cell), turns[inside], len(members))]
        return result


@dataclass(frozen=True)
class GeneratedUse:
    """When training batches show generated images."""

    # Real images alone are drawn, and one is replaced by a generated one of its type and domain with this probability.
    # None: generated images are drawn like the others.
    replace: float | None = None
    # Batches of an epoch -> number of the first global batch of real images alone; None: there is none.
    real_from: Callable[[int], int] | None = None


@dataclass(frozen=True)
class OrderAmong:
    """An order over some rows of the table. order: of their places in `among`."""

    order: Order
    among: Rows

    @property
    def epoch_size(self) -> int:
        return self.order.epoch_size

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return self.among[self.order.rows(epoch, positions)]


class ReplacingOrder:
    """An order over real images, each replaced with a probability by a generated one of its type and domain.

    Whether, and by which, is drawn for each position. An image that has no such generated one is never replaced.
    """

    def __init__(self, order: Order, kinds: npt.ArrayLike, generated: Rows, probability: float, seed: int) -> None:
        """`kinds`: a number for the type and domain of each row of the table. `generated`: rows of generated images."""
        self.epoch_size = order.epoch_size
        self._order, self._probability, self._seed = order, probability, seed
        self._kinds = np.asarray(kinds)
        ordered = generated[np.argsort(self._kinds[generated], kind="stable")]
        self._generated = np.append(ordered, 0)  # a place to point at for kinds that have none
        counts = np.bincount(self._kinds[generated], minlength=int(self._kinds.max()) + 1)
        self._counts, self._firsts = counts, counts.cumsum() - counts

    def rows(self, epoch: int, positions: Rows) -> Rows:
        drawn = self._order.rows(epoch, positions)
        kinds = self._kinds[drawn]
        draws = uniform(derive_key(self._seed, "replacement"), epoch * self.epoch_size + positions, 2)
        replaced = (draws[:, 0] < self._probability) & (self._counts[kinds] > 0)
        places = self._firsts[kinds] + (draws[:, 1] * self._counts[kinds]).astype(np.int64)
        return np.where(replaced, self._generated[places], drawn)


def _walk(seed: int, purpose: str, number: int, turns: Rows, size: int) -> Rows:
    """Which of `size` members is shown at each turn: int64 [n]. Random permutations of all, one after another."""
    walks, steps = np.divmod(turns, size)
    found = np.empty_like(steps)
    for walk in np.unique(walks):
        key = derive_key(seed, purpose, number, int(walk))
        found[walks == walk] = permute(key, steps[walks == walk], size)
    return found


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """The part of a batch of `size` that one rank takes; parts differ by at most one sample."""
    return slice(size * rank // world_size, size * (rank + 1) // world_size)


class GlobalBatches:
    """An order, epoch after epoch, cut into global batches of `size`."""

    def __init__(self, order: Order, size: int, keep_tail: bool) -> None:
        """`keep_tail`: the rest of an epoch is a smaller batch (scoring); else it is dropped (training)."""
        self.epoch_size = order.epoch_size
        self.size = size
        whole, tail = divmod(order.epoch_size, size)
        self.per_epoch = whole + 1 if keep_tail and tail else whole
        self._keep_tail = keep_tail
        self._order = order
        # Of batches that are read now, and of those that are read ahead.
        self._cached_block = lru_cache(maxsize=4)(self._block)

    def rows(self, batch: int) -> npt.NDArray[np.int64]:
        """Rows of the sample table in global batch number `batch`, counted from the start of training: int64 [n]."""
        epoch, number = divmod(batch, self.per_epoch)
        start = number * self.size
        stop = min(start + self.size, self.epoch_size)
        pieces = [self._cached_block(epoch, start // _ORDER_BLOCK)]
        first = start // _ORDER_BLOCK * _ORDER_BLOCK
        while first + sum(map(len, pieces)) < stop:
            pieces.append(self._cached_block(epoch, start // _ORDER_BLOCK + len(pieces)))
        return np.concatenate(pieces)[start - first : stop - first]

    def count_parts(self, world_size: int, micro_batch: int | None) -> int:
        """Micro-batches of each rank's slice, the same number on every rank.

        UserError when an epoch has no whole batch, or a micro-batch no image. (When scoring, both are allowed.)
        """
        if self._keep_tail:
            return -(-self.size // (world_size * (micro_batch or self.size)))
        if self.size > self.epoch_size:
            raise UserError(
                f"train.global_batch={self.size} is more than the {self.epoch_size} "
                "training images: lower it or add images"
            )
        smallest, largest = self.size // world_size, -(-self.size // world_size)
        parts = -(-largest // (micro_batch or largest))
        if parts > smallest:
            raise UserError(
                f"train.global_batch={self.size} over {world_size} processes cannot be cut into {parts} "
                f"micro-batches with an image in each: raise train.global_batch or train.micro_batch"
            )
        return parts

    def _block(self, epoch: int, number: int) -> Rows:
        """The order at positions [number, number + 1) * _ORDER_BLOCK of an epoch."""
        first = number * _ORDER_BLOCK
        return self._order.rows(epoch, np.arange(first, min(first + _ORDER_BLOCK, self.epoch_size)))
