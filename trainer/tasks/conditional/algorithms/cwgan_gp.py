"""CWGAN-GP: WGAN-GP (Gulrajani et al. 2017) whose critic is shown the type beside the image, the thesis's rival."""

from dataclasses import dataclass
from functools import partial

from data_pipeline.device import to_device
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, uniform
from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithm import ConditionalAlgorithm, Generated, Judged
from trainer.tasks.conditional.config import ConditionalModelConfig


@dataclass(frozen=True)
class PenaltyOptions:
    """The weight of the gradient penalty."""

    penalty: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name}={value}: must be at least 0")


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
        part = judged.real
        points = uniform(derive_key(self.setting.seed, "penalty"), part.positions, 1)[:, 0]
        penalty = losses.gradient_penalty(
            # Past the data-parallel wrapper: it allows no gradient of a gradient (contract C10).
            partial(self._critic.module, types=part.labels),
            part.images,
            judged.generated,
            to_device(points, part.images.device),
        )
        distance = losses.wasserstein_critic(losses.score(judged.on_real), losses.score(judged.on_generated))
        return {"critic": (1.0, distance), "penalty": (self.options.penalty, penalty)}

    def _generator_terms(self, made: Generated) -> Terms:
        return {"adversarial": (1.0, losses.wasserstein_generator(losses.score(made.answers)))}
