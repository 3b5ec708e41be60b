"""pix2pix (Isola et al. 2017) as a normaliser, the thesis's rival: it learns to colour grey images.

It needs aligned pairs, which two stains of different cells do not give. So each domain's generator learns from pairs
within that domain, grey to colour, and normalises by colouring the other domain's images turned grey.
"""

from dataclasses import dataclass

import torch
from torch import nn

from models.stain.grey import ColourGrey, to_grey
from models.stain.two_way import DomainPair
from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.stain.algorithm import Pair, StainGan
from trainer.tasks.stain.config import StainModelConfig


@dataclass(frozen=True)
class Pix2PixOptions:
    """The weight of the L1 term."""

    l1: float = 100.0


@registered
class Pix2Pix(StainGan):
    """Generators learn to undo `to_grey` in their own domain; discriminators see grey and colour side by side."""

    Options = Pix2PixOptions
    critic_channels = 6

    @classmethod
    def into_domains(cls, generators: nn.Module) -> tuple[nn.Module, nn.Module]:
        assert isinstance(generators, DomainPair)
        return ColourGrey(generators.a), ColourGrey(generators.b)

    def _critic_steps_of(self, model: StainModelConfig) -> int:
        return 1

    def _critic_terms(self, pair: Pair) -> Terms:
        images = [pair.a.images, pair.b.images]
        grey = [to_grey(each) for each in images]
        with torch.no_grad(), self._generators.autocast():
            coloured = self._generators.module(*grey)
        with self._critics.autocast():
            maps = self._critics.engine(*(_side_by_side(*three) for three in zip(grey, images, coloured, strict=True)))
        terms = []
        for patch_map in maps:
            on_real, on_fake = patch_map.chunk(2)
            real, fake = losses.cross_entropy_of_patches(on_real, 1.0), losses.cross_entropy_of_patches(on_fake, 0.0)
            terms.append((real + fake) / 2)
        return {"critic": (1.0, torch.cat(terms))}

    def _generator_terms(self, pair: Pair) -> Terms:
        images = [pair.a.images, pair.b.images]
        grey = [to_grey(each) for each in images]
        with self._generators.autocast():
            coloured = self._generators.engine(*grey)
            maps = self._critics.module(*(torch.cat(both, 1) for both in zip(grey, coloured, strict=True)))
        adversarial = torch.cat([losses.cross_entropy_of_patches(patch_map, 1.0) for patch_map in maps])
        l1 = torch.cat([losses.reconstruction(*both) for both in zip(images, coloured, strict=True)])
        return {"adversarial": (1.0, adversarial), "l1": (self.options.l1, l1)}


def _side_by_side(grey: torch.Tensor, real: torch.Tensor, coloured: torch.Tensor) -> torch.Tensor:
    """Real pairs, then generated ones: [2n, 6, H, W]."""
    return torch.cat([torch.cat([grey, real], dim=1), torch.cat([grey, coloured.to(grey.dtype)], dim=1)])
