"""FastGAN's self-supervision: a discriminator's features must tell what was seen (Liu et al. 2021, section 3.2)."""

import torch
from torch import Tensor, nn

from models.few_shot.config import GeneratorConfig
from models.few_shot.generator import glu_level


class FeatureDecoder(nn.Module):
    """FastGAN's decoder of a discriminator's features: float [n, C, s, s] -> images [n, 3, 4s, 4s] in [-1, 1].

    The features come from images of 8s pixels; half their resolution is enough to say what was seen
    (FastGAN decodes smaller images too).
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        config = GeneratorConfig(width=width, upsample="nearest")
        self.levels = nn.Sequential(glu_level(config, in_channels, 2 * width), glu_level(config, 2 * width, width))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.last(self.levels(features)).float())
