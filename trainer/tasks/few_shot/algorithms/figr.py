"""FIGR (Clouatre and Demers 2019), the thesis's rival: Reptile over a Wasserstein GAN without encoder."""

from dataclasses import dataclass

import torch

from data_pipeline.device import to_device
from trainer.learners import losses
from trainer.learners.choices import PenaltyMetric
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.few_shot.episode import Draw, judge
from trainer.tasks.few_shot.reptile import MetaTrained


@dataclass(frozen=True)
class PenaltyOptions:
    """Weight and metric of the gradient penalty."""

    penalty: float = 10.0
    penalty_metric: PenaltyMetric = "euclidean"


@registered
class Figr(MetaTrained):
    """Noise to images against a critic under a gradient penalty, inside Reptile."""

    Options = PenaltyOptions

    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        with torch.no_grad():
            generated = self._generate(images, draw)
        critic = self.networks["discriminator"]
        points = to_device(draw.uniform("penalty", 1)[:, 0], images.device)
        penalty = losses.gradient_penalty(critic, images, generated, points, self.options.penalty_metric)
        return {
            "discriminator": (1.0, losses.wasserstein_critic(*judge(critic, images, generated))),
            "penalty": (self.options.penalty, penalty),
        }

    def generator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        logits = self.networks["discriminator"](self._generate(images, draw))
        return {"adversarial": (1.0, losses.wasserstein_generator(logits))}
