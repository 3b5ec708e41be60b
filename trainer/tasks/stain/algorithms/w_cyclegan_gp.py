"""W-CycleGAN-GP: CycleGAN with Wasserstein critics under a gradient penalty (thesis section 3.4, eq. 23, 27-30)."""

from dataclasses import dataclass

import torch

from data_pipeline.device import to_device
from data_pipeline.randomness import derive_key, uniform
from trainer.learners import losses
from trainer.learners.choices import PenaltyMetric
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.stain.algorithm import CycleGanBase, CycleOptions, Pair


@dataclass(frozen=True)
class WassersteinOptions(CycleOptions):
    """CycleOptions, and weight and metric of the critics' gradient penalty (eq. 28, 30)."""

    penalty: float = 10.0
    penalty_metric: PenaltyMetric = "root_mean_square"


@registered
class WCycleGanGp(CycleGanBase):
    """Critics minimise D(generated) - D(real) + penalty.

    Equation 30 as printed adds the penalty to what the critic maximises; its sign is turned here, as in eq. 26.
    """

    Options = WassersteinOptions

    def _adversarial(self, patch_map: torch.Tensor) -> torch.Tensor:
        return losses.wasserstein_generator(losses.score(patch_map))

    def _critic_terms(self, pair: Pair) -> Terms:
        fakes = self._fakes(pair)
        distances, penalties = [], []
        for name, real, patch_map in zip(("a", "b"), pair[:2], self._judge(pair, fakes), strict=True):
            on_real, on_fake = losses.score(patch_map).chunk(2)
            distances.append(losses.wasserstein_critic(on_real, on_fake))
            points = uniform(derive_key(self.setting.seed, "penalty", name), real.positions, 1)[:, 0]
            penalties.append(
                losses.gradient_penalty(
                    # Past the data-parallel wrapper: it allows no gradient of a gradient.
                    getattr(self._critics.module, name),
                    real.images,
                    fakes[name],
                    to_device(points, real.images.device),
                    self.options.penalty_metric,
                )
            )
        return {"critic": (1.0, torch.cat(distances)), "penalty": (self.options.penalty, torch.cat(penalties))}
