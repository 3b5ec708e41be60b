"""W-CycleGAN-GP: CycleGAN with Wasserstein critics under a gradient penalty (thesis section 3.4, eq. 23, 27-30)."""

from collections.abc import Sequence

import torch

from data_pipeline.device import to_device
from data_pipeline.randomness import derive_key, uniform
from trainer.learners import losses
from trainer.tasks.stain.cycle import CycleAlgorithm, Pair


class WCycleGanGp(CycleAlgorithm):
    """Critics minimise D(generated) - D(real) + penalty.

    Equation 30 as printed adds the penalty to what the critic maximises; its sign is turned here, as in eq. 26.
    """

    def _adversarial(self, patch_map: torch.Tensor) -> torch.Tensor:
        return losses.wasserstein_generator(losses.score(patch_map))

    def _move_critics(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        distance = torch.zeros((), device=self._topology.device)
        penalty = torch.zeros((), device=self._topology.device)
        for number, (a, b) in enumerate(pairs, start=1):
            reals = {"a": a, "b": b}
            with torch.no_grad(), self._generators.autocast():
                fakes = {
                    "a": self._two_way.b_to_a(b.images).float(),
                    "b": self._two_way.a_to_b(a.images).float(),
                }
            with self._critics.part_of_step(last=number == len(pairs)):
                # Real and generated images go through the engine in one pass: some engines allow no second.
                with self._critics.autocast():
                    joined = {name: torch.cat([real.images, fakes[name]]) for name, real in reals.items()}
                    maps = self._critics.engine(joined["a"], joined["b"])
                here = torch.zeros((), device=self._topology.device)
                punished = torch.zeros((), device=self._topology.device)
                for (name, real), patch_map in zip(reals.items(), maps, strict=True):
                    on_real, on_fake = losses.score(patch_map).chunk(2)
                    here = here + losses.wasserstein_critic(on_real, on_fake).sum()
                    points = uniform(derive_key(self._seed, "penalty", name), real.positions, 1)[:, 0]
                    punished = (
                        punished
                        + losses.gradient_penalty(
                            # Past the data-parallel wrapper: it allows no gradient of a gradient (contract C10).
                            getattr(self._critics.module, name),
                            real.images,
                            fakes[name],
                            to_device(points, real.images.device),
                            self._weights.penalty_metric,
                        ).sum()
                    )
                self._critics.backward((here + self._weights.penalty * punished) * self._share)
            distance += here.detach()
            penalty += punished.detach()
        return {"critic": distance, "penalty": penalty}
