"""What W-CycleGAN-GP and CycleGAN share: two generators, two critics, and the generators' move."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from data_pipeline.stream.stream import MicroBatch, Topology
from models.stain.two_way import DomainPair, Translation, TwoWay
from trainer.learners import losses
from trainer.learners.learner import Learner
from trainer.loop.fit import DETAIL, Batches, Stateless, StepResult
from trainer.tasks.stain.config import CycleWeights

# Gradients at an image's pixels are small; half precision would round them to zero.
_GRADIENT_SCALE = 2.0**12

# One micro-batch of each domain, at the same positions of the global order.
Pair = tuple[MicroBatch, MicroBatch]


class CycleAlgorithm(Stateless, ABC):
    """Translation between two domains without pairs (thesis 3.4): critics move, then both generators at once.

    Streams `a` and `b` give one global batch each per critics' move; the generators move on the last of
    them. A subclass says what its adversarial loss is and how its critics move.
    """

    def __init__(
        self,
        generators: Learner,
        critics: Learner,
        weights: CycleWeights,
        *,
        critic_steps: int,
        global_batch: int,
        seed: int,
        topology: Topology,
    ) -> None:
        """generators: a learner of a TwoWay; critics: of a DomainPair."""
        assert isinstance(generators.module, TwoWay)
        assert isinstance(critics.module, DomainPair)
        self._two_way: TwoWay = generators.module
        self.learners = {"generators": generators, "critics": critics}
        self.takes = {"a": critic_steps, "b": critic_steps}
        self._generators, self._critics = generators, critics
        self._weights = weights
        self._critic_steps = critic_steps
        self._seed = seed
        self._topology = topology
        # The engines average gradients over processes, whose slices may differ in size: each image
        # therefore weighs world_size / global_batch, and the average is the joined batch's mean.
        self._share = topology.world_size / global_batch

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """The critics' moves, then the generators'; sums `critic`, `adversarial`, `cycle`, `identity` and more."""
        self._generators.engine.train()
        self._critics.engine.train()
        sums: dict[str, torch.Tensor] = {}
        pairs: list[Pair] = []
        critics_norm = torch.zeros((), device=self._topology.device)
        for _ in range(self._critic_steps):
            pairs = list(zip(next(batches["a"]), next(batches["b"]), strict=True))
            moved = self._move_critics(pairs)
            _add(sums, {name: value / self._critic_steps for name, value in moved.items()})
            critics_norm = self._critics.step()
        sums |= self._move_generators(pairs, detailed)
        return StepResult(
            sums,
            {"gradient_norm/critics": critics_norm, "gradient_norm/generators": self._generators.step()},
        )

    @abstractmethod
    def _move_critics(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        """Both critics' gradients over all micro-batches, their step is the caller's; sums over the images."""

    @abstractmethod
    def _adversarial(self, patch_map: torch.Tensor) -> torch.Tensor:
        """What a generator minimises, of each image [n], from the critic's answer to its images."""

    def _move_generators(self, pairs: Sequence[Pair], detailed: bool) -> dict[str, torch.Tensor]:
        """Gradients of both generators over all micro-batches; their step is the caller's."""
        sums: dict[str, torch.Tensor] = {}
        for number, (a, b) in enumerate(pairs, start=1):
            with self._generators.part_of_step(last=number == len(pairs)), self._critics.frozen() as critics:
                with self._generators.autocast():
                    made = self._generators.engine(a.images, b.images, identity=self._weights.identity > 0)
                    maps = critics(made.fake_a, made.fake_b)
                terms = self._terms(a.images, b.images, made, maps)
                weighted = {name: getattr(self._weights, name) * term for name, term in terms.items()}
                if detailed:
                    _add(sums, _pulls(weighted, made))
                self._generators.backward(torch.stack(list(weighted.values())).sum() * self._share)
            _add(sums, {name: term.detach() for name, term in terms.items()})
        return sums

    def _terms(
        self, real_a: torch.Tensor, real_b: torch.Tensor, made: Translation, maps: tuple[torch.Tensor, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The terms of eq. 29 and 23 before their weights, each summed over the images and both directions."""
        adversarial = torch.stack([self._adversarial(patch_map).sum() for patch_map in maps])
        cycle = losses.cycle_consistency(real_a, made.cycle_a) + losses.cycle_consistency(real_b, made.cycle_b)
        terms = {"adversarial": adversarial.sum(), "cycle": cycle.sum()}
        if made.same_a is not None and made.same_b is not None:
            same = losses.identity(real_a, made.same_a) + losses.identity(real_b, made.same_b)
            terms["identity"] = same.sum()
        return terms


def _pulls(terms: dict[str, torch.Tensor], made: Translation) -> dict[str, torch.Tensor]:
    """How hard each term pulls on a generated image of domain A: the L2 norm of its gradient there.

    The identity term acts on another output of the generator, and is measured there.
    """
    pulls = {}
    for name, term in terms.items():
        image = made.same_a if name == "identity" and made.same_a is not None else made.fake_a
        (gradient,) = torch.autograd.grad(term * _GRADIENT_SCALE, image, retain_graph=True)
        pulls[f"{DETAIL}pull_{name}"] = gradient.float().flatten(1).norm(dim=1).sum() / _GRADIENT_SCALE
    return pulls


def _add(sums: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
