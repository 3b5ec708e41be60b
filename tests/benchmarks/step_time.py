"""Seconds of one training step on many processes, from its parts: the arithmetic of the scaling benchmark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import nnls

# DistributedDataParallel exchanges gradients in portions of this size as the backward pass yields them.
BUCKET_BYTES = 25 * 2**20
# A backward pass computes twice what a forward pass does: gradients of activations and of weights.
BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True)
class Link:
    """bandwidth: bytes per second, one way. latency: seconds of a message beside its bytes."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Step:
    """Seconds of one step: compute, what of the exchange is waited for, and loading, which goes on beside both."""

    compute: float
    exchange: float
    loading: float = 0.0

    @property
    def seconds(self) -> float:
        return max(self.loading, self.compute + self.exchange)

    @property
    def bound(self) -> Literal["compute", "exchange", "loading"]:
        """What takes most of the step."""
        if self.loading > self.compute + self.exchange:
            return "loading"
        return "exchange" if self.exchange > self.compute else "compute"


def ring_all_reduce(processes: int, size: float, link: Link) -> float:
    """Seconds in which a ring sums `size` bytes over its processes.

    2(n - 1) messages of size / n bytes (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"); the
    slowest link of the ring sets the pace.
    """
    return 2 * (processes - 1) * (size / processes / link.bandwidth + link.latency)


def waited_for(processes: int, size: float, link: Link, compute: float, *, overlap: bool) -> float:
    """Seconds of the exchange that the step waits for; with overlap, what the backward pass does not hide.

    Portions go round one after the other; the last is there when the backward pass has ended, so it is never hidden.
    """
    portions = math.ceil(size / BUCKET_BYTES)
    last = ring_all_reduce(processes, size / portions, link)
    return max(portions * last - BACKWARD_SHARE * compute, last) if overlap else portions * last


def fit_link(processes: int, sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """The link with which the ring's formula comes nearest to measured times, by relative error."""
    times = np.asarray(seconds)
    messages = 2 * (processes - 1)
    of_bytes = messages * np.asarray(sizes) / processes / times
    of_messages = np.full(len(times), messages) / times
    (per_byte, latency), _ = nnls(np.stack([of_bytes, of_messages], axis=1), np.ones(len(times)))
    return Link(1 / per_byte, latency)
