"""What an algorithm is, and the order of moves that adversarial ones share."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from data_pipeline.stream.stream import MicroBatch
from trainer.learners.learner import Learner, Parts, Setting, Terms, add, frozen

Part = TypeVar("Part")
# Metrics with this prefix exist on logged steps only; they have no epoch mean.
DETAIL = "detail/"


class GlobalBatch:
    """This rank's micro-batches of one global batch, read as they are iterated over, once."""

    def __init__(self, micro_batches: Iterator[MicroBatch], parts: int) -> None:
        self._micro_batches, self._parts = micro_batches, parts

    def __len__(self) -> int:
        return self._parts

    def __iter__(self) -> Iterator[MicroBatch]:
        return itertools.islice(self._micro_batches, self._parts)


# The coming global batches of each stream. An algorithm takes as many as its `takes` says.
Batches = Mapping[str, Iterator[Parts[MicroBatch]]]


@dataclass
class StepResult:
    """Metrics of one step: scalars on the device.

    sums: over this rank's images of one global batch (a loss, a count of right answers). norms: equal on all ranks
    (a gradient's norm).
    """

    sums: dict[str, torch.Tensor]
    norms: dict[str, torch.Tensor]


class Algorithm(Protocol):
    """Learners and one iteration over them.

    takes: global batches that one step takes from each stream.
    """

    @property
    def learners(self) -> Mapping[str, Any]: ...

    @property
    def takes(self) -> Mapping[str, int]: ...

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One iteration. detailed: add metrics that are expensive."""

    held_images: int  # images that its state holds, on each rank

    def state_dict(self) -> dict[str, Any]:
        """State beside the learners'; equal on all ranks."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""


class Stateless:
    """An algorithm without state of its own."""

    held_images = 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Adversarial(Stateless, ABC, Generic[Part]):
    """The critic makes `critic_steps` steps, each on a new global batch; then the others make one, on the last batch.

    Part: what one micro-batch of all streams is: a MicroBatch, or a pair of them.
    """

    def __init__(
        self, learners: dict[str, Learner], setting: Setting, *, critic_steps: int, streams: Sequence[str]
    ) -> None:
        """learners: the critic first."""
        self.learners = learners
        self.takes = dict.fromkeys(streams, critic_steps)
        self.setting = setting
        self._critic_steps = critic_steps
        self._detailed = False

    @abstractmethod
    def moves(self) -> dict[str, Callable[[Part], Terms]]:
        """Learner's name -> function that gives its loss terms; in the order of the steps, the critic first."""

    @abstractmethod
    def _parts(self, batches: Batches) -> list[Part]:
        """The next global batch of each stream, micro-batch by micro-batch."""

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """The critic's moves, then the others'. Sums: each term; the critic's are means over its moves."""
        self._detailed = detailed
        for learner in self.learners.values():
            learner.engine.train()
        sums: dict[str, torch.Tensor] = {}
        norms: dict[str, torch.Tensor] = {}
        (critic, judge), *others = self.moves().items()
        parts: list[Part] = []
        for _ in range(self._critic_steps):
            parts = self._parts(batches)
            moved, norms[f"gradient_norm/{critic}"] = self._move(critic, parts, judge)
            add(sums, moved, 1 / self._critic_steps)
        for name, terms_of in others:
            moved, norms[f"gradient_norm/{name}"] = self._move(name, parts, terms_of)
            add(sums, moved)
        return StepResult(sums, norms)

    def _move(
        self, name: str, parts: list[Part], terms_of: Callable[[Part], Terms]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """One move of one learner, the others frozen."""
        learner = self.learners[name]
        with frozen(other for other in self.learners.values() if other is not learner):
            return learner.move(parts, terms_of)
