"""The meta-learned encoder GAN (thesis section 3.6, eq. 34-44; after FAML, Phaphuangwittayakul et al. 2021)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from models.few_shot.networks import Encoder
from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.few_shot.config import FewShotModelConfig
from trainer.tasks.few_shot.episode import Draw, judge
from trainer.tasks.few_shot.reptile import MetaTrained


@dataclass(frozen=True)
class FewShotMetaOptions:
    """Weights of the terms of eq. 44, whose adversarial term has weight 1, and the form of that term."""

    encoder: float = 1.0
    mode_seeking: float = 1.0
    # relativistic: FAML's relativistic average. printed: the logarithms of eq. 35-39; of the generator's, the one of
    # real images has no gradient.
    adversarial: Literal["relativistic", "printed"] = "relativistic"


@registered
class FewShotMeta(MetaTrained):
    """Each image is encoded, and generated twice from its feature vector and two noise vectors z1 and z2.

    One discriminator judges both, its two terms averaged (eq. 34, 37). En1, Gen1 and Dis1 of the thesis's text are the
    networks of the inner loop, which this is; En2, Gen2 and Dis2 are those of the outer one, `Reptile`.
    """

    Options: ClassVar[type[Any]] = FewShotMetaOptions
    generators = ("encoder", "generator")

    @classmethod
    def latent_size(cls, model: FewShotModelConfig) -> int:
        """Size of the noise plus size of the input image's feature vector."""
        return model.generator.latent_size + model.encoder.feature_size

    @classmethod
    def _build_networks(cls, model: FewShotModelConfig, image_size: int) -> dict[str, nn.Module]:
        return super()._build_networks(model, image_size) | {"encoder": Encoder(model.encoder, image_size)}

    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        """The adversarial loss, mean over both generated images (thesis, equations 34-36)."""
        with torch.no_grad():
            _, made = self._reconstruct(images, draw)
        real, *generated = judge(self.networks["discriminator"], images, *made)
        both = [self._adversarial(real, logits) for logits in generated]
        return {"discriminator": (1.0, torch.stack(both).mean(dim=0))}

    def generator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        """Adversarial and encoder terms (thesis, equations 37-42) and the mode-seeking term (equation 44)."""
        noise, made = self._reconstruct(images, draw)
        real, *generated = judge(self.networks["discriminator"], images, *made)
        both = [self._adversarial(logits, real) for logits in generated]
        distances = [losses.reconstruction(images, image) for image in made]
        return {
            "adversarial": (1.0, torch.stack(both).mean(dim=0)),
            "encoder": (self.options.encoder, torch.stack(distances).mean(dim=0)),
            "mode_seeking": (self.options.mode_seeking, losses.mode_seeking(*made, *noise)),
        }

    def _adversarial(self, preferred: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """[n], from logits [n] of the images that should look real and of the others."""
        if self.options.adversarial == "relativistic":
            return losses.relativistic_average(preferred, other)
        return losses.cross_entropy_of_source(preferred, 1.0) + losses.cross_entropy_of_source(other, 0.0)

    def _reconstruct(
        self, images: torch.Tensor, draw: Draw
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """(z1, z2), float [n, z] each, and the images of both, float32 [n, 3, S, S] each."""
        features = self.networks["encoder"](images)
        generator = self.networks["generator"]
        size = generator.in_size - features.shape[1]
        noise = tuple(draw.normal(name, size, images.device) for name in ("z1", "z2"))
        made = generator(torch.cat([torch.cat([z, features], dim=1) for z in noise]))
        return noise, made.chunk(2)
