"""DiffAugment (Zhao et al. 2020), the thesis's rival: whatever the discriminator sees is augmented, real or not."""

import torch

from trainer.learners import losses
from trainer.learners.differentiable_augmentation import CHANGES, NUMBERS, augment
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.few_shot.episode import Draw, Episode, judge


@registered
class DiffAugment(Episode):
    """A plain GAN from scratch with the non-saturating loss; the generator learns through the augmentation."""

    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        with torch.no_grad():
            generated = self._generate(images, draw)
        shown = augment(images, draw.uniform("real", NUMBERS), CHANGES)
        generated = augment(generated, draw.uniform("generated", NUMBERS), CHANGES)
        real, made = judge(self.networks["discriminator"], shown, generated)
        both = losses.cross_entropy_of_source(real, 1.0) + losses.cross_entropy_of_source(made, 0.0)
        return {"discriminator": (1.0, both)}

    def generator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        generated = augment(self._generate(images, draw), draw.uniform("generated", NUMBERS), CHANGES)
        return {"adversarial": (1.0, losses.cross_entropy_of_source(self.networks["discriminator"](generated), 1.0))}
