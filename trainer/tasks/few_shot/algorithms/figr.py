"""FIGR (Clouatre and Demers 2019), the thesis's rival: Reptile over a Wasserstein GAN without encoder."""

import torch

from data_pipeline.device import to_device
from trainer.learners import losses
from trainer.tasks.few_shot.episode import Draw, Episode, judge


class Figr(Episode):
    """Noise to images against a critic under a gradient penalty; played inside Reptile."""

    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            generated = self._generate(images, draw)
        critic = self.networks["discriminator"]
        points = to_device(draw.uniform("penalty", 1)[:, 0], images.device)
        return {
            "discriminator": losses.wasserstein_critic(*judge(critic, images, generated)),
            "penalty": losses.gradient_penalty(critic, images, generated, points, self._weights.penalty_metric),
        }

    def generator_terms(self, images: torch.Tensor, draw: Draw) -> dict[str, torch.Tensor]:
        logits = self.networks["discriminator"](self._generate(images, draw))
        return {"adversarial": losses.wasserstein_generator(logits)}
