"""The encoder GAN whose discriminator judges the features of a pretrained classifier (after Sauer et al. 2021)."""

from dataclasses import dataclass, field

import torch
from torch import nn

from models.projected_critic import ProjectedCritic, build_projected_critic
from trainer.learners import losses
from trainer.learners.differentiable_augmentation import NUMBERS, Change, augment
from trainer.learners.learner import Terms
from trainer.runs.registry import read_options, registered
from trainer.tasks.few_shot.algorithms.few_shot_meta import FewShotMeta
from trainer.tasks.few_shot.config import FewShotModelConfig
from trainer.tasks.few_shot.episode import Draw


@dataclass(frozen=True)
class FewShotProjectedOptions:
    """The pretrained classifier, and weights of the terms beside the adversarial one, which has 1."""

    timm_name: str = "tf_efficientnet_lite0"
    weights: str | None = None  # "pretrained", timm's; a file of them; null: random ones
    augment: list[Change] = field(default_factory=list)  # of what the discriminator sees, real or not: DiffAugment
    encoder: float = 1.0  # of the mean absolute difference from the encoded image (eq. 42)
    perceptual: float = 1.0  # of the difference from it in the classifier's maps
    mode_seeking: float = 1.0  # of two images of one feature vector being different (eq. 44)


@registered
class FewShotProjected(FewShotMeta):
    """As in `FewShotMeta`, an image is encoded and generated twice; hinge loss of each scale's score."""

    Options = FewShotProjectedOptions

    @classmethod
    def _build_networks(cls, model: FewShotModelConfig, image_size: int) -> dict[str, nn.Module]:
        options, width = read_options("few_shot", model.algorithm, model.options), model.discriminator.width
        critic = build_projected_critic(options.timm_name, options.weights, image_size, 1, width)
        return super()._build_networks(model, image_size) | {"discriminator": critic}

    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        """The hinge loss, mean over both generated images and all scales."""
        with torch.no_grad():
            _, made = self._reconstruct(images, draw)
        real, *generated = self._judge(draw, real=images, z1=made[0], z2=made[1])
        both = [losses.hinge_discriminator(real, each).mean(dim=1) for each in generated]
        return {"discriminator": (1.0, torch.stack(both).mean(dim=0))}

    def generator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        """Adversarial, encoder (equation 42), perceptual and mode-seeking terms (equation 44)."""
        noise, made = self._reconstruct(images, draw)
        scores = torch.stack(self._judge(draw, z1=made[0], z2=made[1]), dim=1)
        distances = [losses.reconstruction(images, image) for image in made]
        return {
            "adversarial": (1.0, losses.wasserstein_generator(losses.score(scores))),
            "encoder": (self.options.encoder, torch.stack(distances).mean(dim=0)),
            "perceptual": (self.options.perceptual, self._perceptual(images, made[0])),
            "mode_seeking": (self.options.mode_seeking, losses.mode_seeking(*made, *noise)),
        }

    @property
    def _critic(self) -> ProjectedCritic:
        critic = self.networks["discriminator"]
        assert isinstance(critic, ProjectedCritic)
        return critic

    def _judge(self, draw: Draw, **batches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores [n, scales] of each batch, changed by numbers of its name."""
        shown = [augment(each, draw.uniform(name, NUMBERS), self.options.augment) for name, each in batches.items()]
        images = torch.cat(shown)
        scores: torch.Tensor = self._critic(images, images.new_zeros(len(images), dtype=torch.int64))
        return scores.float().chunk(len(batches))

    def _perceptual(self, images: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """[n]: mean difference of the classifier's maps, as a share of the real image's mean, mean over the maps."""
        with torch.no_grad():
            wanted = [each.float() for each in self._critic.maps(images)]
        differences = [
            (one - other).abs().mean(dim=(1, 2, 3)) / one.abs().mean(dim=(1, 2, 3)).clamp(min=1e-6)
            for one, other in zip(wanted, self._critic.maps(made), strict=True)
        ]
        return torch.stack(differences).mean(dim=0)
