"""What C-WGAN-GP and its rivals share: a generator that is told a cell type, a critic, and the order of moves."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from data_pipeline.device import to_device
from data_pipeline.randomness import derive_key, normal
from data_pipeline.stream.stream import MicroBatch, Topology
from trainer.learners.learner import Learner
from trainer.loop.fit import Batches, Stateless, StepResult
from trainer.tasks.conditional.config import ConditionalWeights

# The terms that a learner minimises: name -> (weight, one number per image float32 [n]).
Terms = dict[str, tuple[float, torch.Tensor]]


class Judged(NamedTuple):
    """What a critic's loss follows from, n images of each kind."""

    real: MicroBatch
    generated: torch.Tensor  # float32 [n, 3, S, S] in [-1, 1]
    conditions: torch.Tensor  # int64 [n], what the generated images were asked to be
    on_real: torch.Tensor  # float32 [n, outputs], the critic's answers: the score first
    on_generated: torch.Tensor


class Generated(NamedTuple):
    """What a generator's loss follows from."""

    images: torch.Tensor  # float32 [n, 3, S, S] in [-1, 1], with their graph
    conditions: torch.Tensor  # int64 [n]
    answers: torch.Tensor  # float32 [n, outputs], the critic's


class ConditionalAlgorithm(Stateless, ABC):
    """The critic moves `critic_steps` times, each on a global batch of stream `train`, then the generator once.

    A subclass says what its learners minimise, and which networks they are: whether the critic is shown the
    types, whether it also names them, whether a classifier plays, whether each type has a pair of its own.
    """

    critic_sees_types: ClassVar[bool] = False
    critic_names_types: ClassVar[bool] = False
    has_classifier: ClassVar[bool] = False
    pair_for_each_type: ClassVar[bool] = False

    def __init__(
        self,
        learners: dict[str, Learner],
        weights: ConditionalWeights,
        *,
        types: int,
        latent_size: int,
        critic_steps: int,
        total_steps: int,
        global_batch: int,
        seed: int,
        topology: Topology,
    ) -> None:
        """learners: `generator`, `critic`, and `classifier` where one plays. types: how many the labels name."""
        self.learners = learners
        self.takes = {"train": critic_steps}
        self._generator, self._critic = learners["generator"], learners["critic"]
        self._weights = weights
        self._types, self._latent_size = types, latent_size
        self._critic_steps, self._total_steps = critic_steps, total_steps
        self._seed = seed
        self._topology = topology
        # The engines average gradients over processes, whose slices may differ in size: each image
        # therefore weighs world_size / global_batch, and the average is the joined batch's mean.
        self._share = topology.world_size / global_batch

    @property
    def conditions(self) -> list[int]:
        """What the generator is told to make an image of each type."""
        return list(range(self._types))

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """The critic's moves, then the other learners'; sums are the terms' by name, norms the gradients'."""
        for learner in self.learners.values():
            learner.engine.train()
        sums: dict[str, torch.Tensor] = {}
        norms: dict[str, torch.Tensor] = {}
        parts: list[MicroBatch] = []
        for _ in range(self._critic_steps):
            parts = list(next(batches["train"]))
            moved, norms["gradient_norm/critic"] = self._move("critic", parts, self._judge)
            add(sums, {name: value / self._critic_steps for name, value in moved.items()})
        for name, terms in self._moves_after_critic().items():
            moved, norms[f"gradient_norm/{name}"] = self._move(name, parts, terms)
            add(sums, moved)
        return StepResult(sums, norms)

    @abstractmethod
    def _critic_terms(self, judged: Judged) -> Terms:
        """What the critic minimises."""

    @abstractmethod
    def _generator_terms(self, made: Generated) -> Terms:
        """What the generator minimises."""

    def _moves_after_critic(self) -> dict[str, Callable[[MicroBatch], Terms]]:
        """The learners that move once, on the critic's last batch, in their order."""
        return {"generator": self._generate}

    def _conditions_for(self, part: MicroBatch, purpose: str) -> torch.Tensor:
        """What to generate beside these real images, int64 [n]: as many of each type as there are here."""
        return part.labels

    def _move(
        self, name: str, parts: Sequence[MicroBatch], terms_of: Callable[[MicroBatch], Terms]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """One move of one learner, the others frozen: sums of its terms, and its gradient's norm."""
        learner = self.learners[name]
        sums: dict[str, torch.Tensor] = {}
        with ExitStack() as others:
            for other in self.learners.values():
                if other is not learner:
                    others.enter_context(other.frozen())
            for number, part in enumerate(parts, start=1):
                with learner.part_of_step(last=number == len(parts)):
                    terms = terms_of(part)
                    total = torch.stack([weight * values.sum() for weight, values in terms.values()]).sum()
                    learner.backward(total * self._share)
                add(sums, {term: values.detach().sum() for term, (_, values) in terms.items()})
        return sums, learner.step()

    def _latents(self, part: MicroBatch, purpose: str) -> torch.Tensor:
        """Standard normal float32 [n, latent_size], the same however the global batch is sliced (contract C11)."""
        draws = normal(derive_key(self._seed, "latent", purpose), part.positions, self._latent_size)
        return to_device(draws.astype(np.float32), part.images.device)

    def _judge(self, part: MicroBatch) -> Terms:
        conditions = self._conditions_for(part, "critic")
        with torch.no_grad(), self._generator.autocast():
            generated = self._generator.module(self._latents(part, "critic"), conditions)
        # Real and generated images go through the engine in one pass: some engines allow no second.
        with self._critic.autocast():
            answers = self._critic.engine(
                torch.cat([part.images, generated]), torch.cat([part.labels, conditions]), parts=2
            )
        on_real, on_generated = answers.float().chunk(2)
        return self._critic_terms(Judged(part, generated, conditions, on_real, on_generated))

    def _generate(self, part: MicroBatch) -> Terms:
        conditions = self._conditions_for(part, "generator")
        with self._generator.autocast():
            images = self._generator.engine(self._latents(part, "generator"), conditions)
            answers = self._critic.module(images, conditions).float()
        return self._generator_terms(Generated(images, conditions, answers))


def add(sums: dict[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Add the values to the sums of their names."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
