"""The meta-learned encoder GAN (thesis section 3.6, eq. 34-44; after FAML, Phaphuangwittayakul et al. 2021)."""

import torch

from trainer.learners import losses
from trainer.tasks.few_shot.episode import Draw, Episode, judge


class FewShotMeta(Episode):
    """Each image is encoded, and generated twice from its feature vector and two noise vectors z1 and z2.

    One discriminator judges both, its two terms averaged (the thesis's Dis1 and Dis2). Played inside Reptile this is
    the thesis's method; from initial weights it is the same network without meta-training.
    """

    generators = ("encoder", "generator")

    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> dict[str, torch.Tensor]:
        """Equations 34-36."""
        with torch.no_grad():
            _, made = self._reconstruct(images, draw)
        real, *generated = judge(self.networks["discriminator"], images, *made)
        both = [losses.relativistic_average(real, logits) for logits in generated]
        return {"discriminator": torch.stack(both).mean(dim=0)}

    def generator_terms(self, images: torch.Tensor, draw: Draw) -> dict[str, torch.Tensor]:
        """Equations 37-42 and the mode-seeking term of equation 44."""
        noise, made = self._reconstruct(images, draw)
        real, *generated = judge(self.networks["discriminator"], images, *made)
        both = [losses.relativistic_average(logits, real) for logits in generated]
        return {
            "adversarial": torch.stack(both).mean(dim=0),
            "encoder": torch.stack([losses.reconstruction(images, image) for image in made]).mean(dim=0),
            "mode_seeking": losses.mode_seeking(*made, *noise),
        }

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
