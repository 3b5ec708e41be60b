"""Projected GAN (Sauer et al. 2021), given the type: the critic judges the features of a pretrained classifier."""

from dataclasses import dataclass, field

import torch
from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import MicroBatch
from models.errors import ModelError
from models.projected_critic import build_projected_critic
from trainer.learners import losses
from trainer.learners.differentiable_augmentation import Change
from trainer.learners.learner import Terms
from trainer.runs.registry import read_options, registered
from trainer.tasks.conditional.algorithm import ConditionalAlgorithm, Generated, Judged
from trainer.tasks.conditional.config import ConditionalModelConfig


@dataclass(frozen=True)
class ProjectedOptions:
    """The pretrained classifier, and what the critic is shown."""

    timm_name: str = "tf_efficientnet_lite0"
    weights: str | None = None  # "pretrained", timm's; a file of them; null: random ones
    augment: list[Change] = field(default_factory=list)  # of real and generated images before the critic: DiffAugment
    mode_seeking: float = 0.0  # weight of two images of a type being different (eq. 44)


@registered
class ProjectedGan(ConditionalAlgorithm):
    """The critic minimises the hinge loss of each scale's score, the generator the negative mean of the scores."""

    Options = ProjectedOptions

    @classmethod
    def build_networks(cls, model: ConditionalModelConfig, image_size: int, types: int) -> dict[str, nn.Module]:
        options, width = read_options("conditional", model.algorithm, model.options), model.critic.width
        try:
            critic = build_projected_critic(options.timm_name, options.weights, image_size, types, width)
        except ModelError as error:
            raise UserError(str(error)) from error
        return {"critic": critic, "generator": cls.build_generator(model, image_size, types)}

    def _critic_terms(self, judged: Judged) -> Terms:
        return {"critic": (1.0, losses.hinge_discriminator(judged.on_real, judged.on_generated).mean(dim=1))}

    def _generate(self, part: MicroBatch) -> Terms:
        if not self.options.mode_seeking:
            return super()._generate(part)
        first, second = self._latents(part, "generator"), self._latents(part, "second")
        with self._generator.autocast():  # one pass: some engines allow no second
            made = self._generator.engine(torch.cat([first, second]), part.labels.repeat(2))
            images, others = made.chunk(2)
            answers = self._critic.module(self._shown(images, part, "generated"), part.labels).float()
        apart = losses.mode_seeking(images, others, first, second)
        terms = self._generator_terms(Generated(images, part.labels, answers))
        return terms | {"mode_seeking": (self.options.mode_seeking, apart)}

    def _generator_terms(self, made: Generated) -> Terms:
        return {"adversarial": (1.0, losses.wasserstein_generator(losses.score(made.answers)))}
