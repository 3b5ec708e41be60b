"""CycleGAN: least-squares discriminators that are shown images from a pool (Zhu et al. 2017), the thesis's rival."""

from collections.abc import Sequence
from typing import Any

import torch

from trainer.learners import losses
from trainer.tasks.stain.cycle import CycleAlgorithm, Pair
from trainer.tasks.stain.image_pool import ImagePool


class CycleGan(CycleAlgorithm):
    """Discriminators learn 1 for real and 0 for generated patches; generators want 1 for theirs."""

    def __init__(self, *arguments: Any, pool_size: int, **settings: Any) -> None:
        """pool_size: generated images kept of each domain; the other arguments are CycleAlgorithm's."""
        super().__init__(*arguments, **settings)
        self._pools = {name: ImagePool(pool_size, self._seed, name) for name in ("a", "b")}

    def _adversarial(self, patch_map: torch.Tensor) -> torch.Tensor:
        return losses.least_squares(patch_map, 1.0)

    def _move_critics(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        shown = self._from_pools(pairs)
        total = torch.zeros((), device=self._topology.device)
        for number, (a, b) in enumerate(pairs, start=1):
            fakes = {name: shown[name][number - 1] for name in shown}
            with self._critics.part_of_step(last=number == len(pairs)):
                with self._critics.autocast():
                    maps = self._critics.engine(torch.cat([a.images, fakes["a"]]), torch.cat([b.images, fakes["b"]]))
                loss = torch.zeros((), device=self._topology.device)
                for patch_map in maps:
                    on_real, on_fake = patch_map.chunk(2)
                    both = losses.least_squares(on_real, 1.0) + losses.least_squares(on_fake, 0.0)
                    loss = loss + both.sum() / 2
                self._critics.backward(loss * self._share)
            total += loss.detach()
        return {"critic": total}

    def _from_pools(self, pairs: Sequence[Pair]) -> dict[str, list[torch.Tensor]]:
        """What the discriminators are shown as generated, for each micro-batch of each domain."""
        with torch.no_grad(), self._generators.autocast():
            made = {
                "a": [self._two_way.b_to_a(b.images).float() for _, b in pairs],
                "b": [self._two_way.a_to_b(a.images).float() for a, _ in pairs],
            }
        positions = [a.positions for a, _ in pairs]
        return {name: self._pools[name].exchange(parts, positions) for name, parts in made.items()}

    def state_dict(self) -> dict[str, Any]:
        """Both pools."""
        return {name: pool.state_dict() for name, pool in self._pools.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, pool in self._pools.items():
            pool.load_state_dict(state[name])
