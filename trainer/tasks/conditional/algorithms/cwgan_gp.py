"""CWGAN-GP: WGAN-GP (Gulrajani et al. 2017) whose critic is shown the type beside the image, the thesis's rival."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from data_pipeline.device import to_device
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, uniform
from trainer.learners import losses
from trainer.learners.differentiable_augmentation import Change
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithm import ConditionalAlgorithm, Generated, Judged
from trainer.tasks.conditional.config import ConditionalModelConfig


@dataclass(frozen=True)
class PenaltyOptions:
    """The gradient penalty, and what the critic is shown."""

    penalty: float = 10.0  # weight
    penalty_share: float = 1.0  # of a batch's images whose slope is taken; a smaller share is faster and less exact
    augment: list[Change] = field(default_factory=list)  # of real and generated images before the critic: DiffAugment

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and value < 0:
                raise ValueError(f"{name}={value}: must be at least 0")
        if not 0 < self.penalty_share <= 1:
            raise ValueError(f"penalty_share={self.penalty_share}: must be above 0 and at most 1")


@registered
class ConditionalWganGp(ConditionalAlgorithm):
    """The critic minimises D(generated) - D(real) + penalty (eq. 26), the generator -D(G(z, C)) (eq. 25)."""

    Options = PenaltyOptions
    critic_sees_types = True

    @classmethod
    def check(cls, model: ConditionalModelConfig) -> None:
        if model.critic.norm == "batch":
            raise UserError(
                f"model.critic.norm=batch: the gradient penalty of {model.algorithm} is of each image alone: use none"
            )

    def _critic_terms(self, judged: Judged) -> Terms:
        part, share = judged.real, self.options.penalty_share
        # By position, so that the same images are chosen however the global batch is sliced.
        chosen = np.flatnonzero(np.floor((part.positions + 1) * share) > np.floor(part.positions * share))
        points = uniform(derive_key(self.setting.seed, "penalty"), part.positions[chosen], 1)[:, 0]
        device = part.images.device
        rows = to_device(chosen, device)
        penalty = losses.gradient_penalty(
            # Past the data-parallel wrapper: it allows no gradient of a gradient.
            partial(self._critic.module, types=part.labels[rows]),
            judged.shown[rows],
            judged.generated[rows],
            to_device(points, device),
        )
        penalty = penalty / share  # its sum over the batch, as if every image had one
        distance = losses.wasserstein_critic(losses.score(judged.on_real), losses.score(judged.on_generated))
        return {"critic": (1.0, distance), "penalty": (self.options.penalty, penalty)}

    def _generator_terms(self, made: Generated) -> Terms:
        return {"adversarial": (1.0, losses.wasserstein_generator(losses.score(made.answers)))}
