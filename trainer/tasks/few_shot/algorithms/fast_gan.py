"""FastGAN (Liu et al. 2021), the thesis's rival: skip-layer excitation and a self-supervised discriminator."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from models.few_shot.networks import Discriminator, FeatureDecoder
from trainer.learners import losses
from trainer.learners.differentiable_augmentation import NUMBERS, Change, augment
from trainer.learners.learner import Terms
from trainer.metrics.perceptual import LearnedPerceptualDistance
from trainer.runs.registry import registered
from trainer.tasks.few_shot.config import FewShotModelConfig
from trainer.tasks.few_shot.episode import Draw, Episode

_CHANGES: tuple[Change, ...] = ("colour", "translation")  # as in FastGAN's own code


@dataclass(frozen=True)
class FastGanOptions:
    """How the discriminator's features reconstruct real images."""

    reconstruction: float = 1.0  # weight
    # torchvision's file of AlexNet: the distance is LPIPS, as in FastGAN (whose LPIPS is VGG's). null: L1.
    lpips_weights: str | None = None


@registered
class FastGan(Episode):
    """FastGAN, trained from scratch: hinge loss, and a decoder that reconstructs images from discriminator features."""

    Options = FastGanOptions
    discriminators = ("discriminator", "decoder")

    @classmethod
    def _build_networks(cls, model: FewShotModelConfig, image_size: int) -> dict[str, nn.Module]:
        networks = super()._build_networks(model, image_size)
        discriminator = networks["discriminator"]
        assert isinstance(discriminator, Discriminator)
        return networks | {"decoder": FeatureDecoder(discriminator.feature_channels, model.generator.width)}

    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        """The hinge loss, and the distance of real images to what is decoded from their features."""
        with torch.no_grad():
            generated = self._generate(images, draw)
        shown = augment(images, draw.uniform("real", NUMBERS), _CHANGES)
        generated = augment(generated, draw.uniform("generated", NUMBERS), _CHANGES)
        discriminator = self.networks["discriminator"]
        assert isinstance(discriminator, Discriminator)
        features = discriminator.features(torch.cat([shown, generated]))
        real, made = discriminator.judge(features).chunk(2)
        decoded = self.networks["decoder"](features[: len(images)])
        seen = functional.avg_pool2d(shown, shown.shape[-1] // decoded.shape[-1])
        return {
            "discriminator": (1.0, losses.hinge_discriminator(real, made)),
            "reconstruction": (self.options.reconstruction, self._distance(seen, decoded)),
        }

    def _distance(self, images: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """Of each pair, float32 [n]."""
        weights = self.options.lpips_weights
        if weights is None:
            return losses.reconstruction(images, decoded)
        return _lpips(weights, images.device)(images, decoded)

    def generator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        generated = augment(self._generate(images, draw), draw.uniform("generated", NUMBERS), _CHANGES)
        # What a generator minimises against a hinge is -D(G(z)), as against a Wasserstein critic.
        return {"adversarial": (1.0, losses.wasserstein_generator(self.networks["discriminator"](generated)))}


@functools.cache
def _lpips(weights: str, device: torch.device) -> LearnedPerceptualDistance:
    return LearnedPerceptualDistance(Path(weights)).to(device)
