"""pix2pix (Isola et al. 2017) as a normaliser, the thesis's rival: it learns to colour grey images.

It needs aligned pairs, which two stains of different cells do not give. So each domain's generator learns from
pairs within that domain, grey to colour, and normalises by colouring the other domain's images turned grey.
"""

from collections.abc import Sequence

import torch

from models.stain.grey import to_grey
from models.stain.two_way import DomainPair
from trainer.learners import losses
from trainer.learners.learner import Learner
from trainer.loop.fit import Batches, Stateless, StepResult
from trainer.tasks.stain.cycle import Pair


class Pix2Pix(Stateless):
    """Generators learn to undo `to_grey` in their own domain; discriminators see grey and colour side by side."""

    def __init__(
        self, generators: Learner, discriminators: Learner, *, l1_weight: float, global_batch: int, world_size: int
    ) -> None:
        """generators: a learner of a DomainPair, grey images to colour ones; discriminators: of another,
        images of six channels to patch maps."""
        assert isinstance(generators.module, DomainPair)
        assert isinstance(discriminators.module, DomainPair)
        self.learners = {"generators": generators, "critics": discriminators}
        self.takes = {"a": 1, "b": 1}
        self._generators, self._discriminators = generators, discriminators
        self._l1_weight = l1_weight
        # An image's share of the joined batch's mean, whatever the sizes of the processes' slices.
        self._share = world_size / global_batch

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One move of the discriminators, one of the generators; sums `critic`, `adversarial`, `l1`."""
        self._generators.engine.train()
        self._discriminators.engine.train()
        pairs = list(zip(next(batches["a"]), next(batches["b"]), strict=True))
        sums = self._move_discriminators(pairs)
        discriminators_norm = self._discriminators.step()
        sums |= self._move_generators(pairs)
        norms = {"gradient_norm/critics": discriminators_norm, "gradient_norm/generators": self._generators.step()}
        return StepResult(sums, norms)

    def _move_discriminators(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        total = torch.zeros((), device=self._generators.device)
        for number, (a, b) in enumerate(pairs, start=1):
            grey = to_grey(a.images), to_grey(b.images)
            with torch.no_grad(), self._generators.autocast():
                coloured = self._generators.module(*grey)
            with self._discriminators.part_of_step(last=number == len(pairs)):
                with self._discriminators.autocast():
                    maps = self._discriminators.engine(
                        _side_by_side(grey[0], a.images, coloured[0]), _side_by_side(grey[1], b.images, coloured[1])
                    )
                loss = torch.zeros((), device=total.device)
                for patch_map in maps:
                    on_real, on_fake = patch_map.chunk(2)
                    both = losses.cross_entropy_of_patches(on_real, 1.0)
                    both = both + losses.cross_entropy_of_patches(on_fake, 0.0)
                    loss = loss + both.sum() / 2
                self._discriminators.backward(loss * self._share)
            total += loss.detach()
        return {"critic": total}

    def _move_generators(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        sums = {name: torch.zeros((), device=self._generators.device) for name in ("adversarial", "l1")}
        for number, (a, b) in enumerate(pairs, start=1):
            grey = to_grey(a.images), to_grey(b.images)
            with (
                self._generators.part_of_step(last=number == len(pairs)),
                self._discriminators.frozen() as discriminators,
            ):
                with self._generators.autocast():
                    coloured = self._generators.engine(*grey)
                    maps = discriminators(*(torch.cat(both, 1) for both in zip(grey, coloured, strict=True)))
                adversarial = torch.cat([losses.cross_entropy_of_patches(patch_map, 1.0) for patch_map in maps]).sum()
                l1 = losses.reconstruction(a.images, coloured[0]) + losses.reconstruction(b.images, coloured[1])
                self._generators.backward((adversarial + self._l1_weight * l1.sum()) * self._share)
            sums["adversarial"] += adversarial.detach()
            sums["l1"] += l1.detach().sum()
        return sums


def _side_by_side(grey: torch.Tensor, real: torch.Tensor, coloured: torch.Tensor) -> torch.Tensor:
    """Real pairs, then generated ones: [2n, 6, H, W]."""
    return torch.cat([torch.cat([grey, real], dim=1), torch.cat([grey, coloured.to(grey.dtype)], dim=1)])
