"""The few-shot generator: GLU blocks and skip-layer excitation (thesis, figures 31, 32; FastGAN, Liu et al. 2021)."""

import torch
from torch import Tensor, nn

from models.few_shot.config import GeneratorConfig, check_image_size
from models.layers import upsampling

_FIRST = 4  # side of the map that the fully connected layer makes
_SLOPE = 0.1  # of the excitation's LeakyReLU, as in FastGAN
# A skip joins a level to one 16 times its size: 8 to 128, 16 to 256.
_SKIP_RATIO = 16
_SKIP_FROM = 8


class Generator(nn.Module):
    """Latents float [n, in_size] -> images float32 [n, 3, S, S] in [-1, 1].

    A fully connected layer to a 4x4 map, then levels of twice the size each up to S: transposed convolution,
    batch norm, gated linear unit. Skips of channel-wise attention join levels far apart (equation 45).
    """

    def __init__(self, config: GeneratorConfig, in_size: int, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        channels = config.channels_at(_FIRST)
        self.in_size = in_size
        self.first = nn.Sequential(
            nn.Linear(in_size, 2 * channels * _FIRST**2),
            nn.Unflatten(1, (2 * channels, _FIRST, _FIRST)),
            nn.BatchNorm2d(2 * channels),
            nn.GLU(dim=1),
        )
        self.levels = nn.ModuleDict()
        size = _FIRST
        while size < image_size:
            size *= 2
            self.levels[str(size)] = glu_level(config, channels, config.channels_at(size))
            channels = config.channels_at(size)
        self.skips = nn.ModuleDict()  # by the size of the level that is excited
        if config.skip_excitation:
            for low, high in skips(image_size):
                self.skips[str(high)] = SkipLayerExcitation(low, config.channels_at(low), config.channels_at(high))
        self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self._low_of = {high: low for low, high in skips(image_size)}

    def forward(self, latents: Tensor) -> Tensor:
        features = self.first(latents)
        kept: dict[int, Tensor] = {}
        for name, level in self.levels.items():
            features = level(features)
            if name in self.skips:
                features = self.skips[name](kept[self._low_of[int(name)]], features)
            kept[int(name)] = features
        return torch.tanh(self.last(features).float())


class SkipLayerExcitation(nn.Module):
    """Low-resolution features weigh the channels of high-resolution ones (equation 45, figure 32).

    float [n, low_channels, s, s] and [n, high_channels, S, S] -> [n, high_channels, S, S].
    """

    def __init__(self, low_size: int, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.excitation = nn.Sequential(
            nn.AvgPool2d(low_size // 4),  # adaptive pooling to 4x4, in the form whose gradient is deterministic
            nn.Conv2d(low_channels, high_channels, 4),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(high_channels, high_channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        weighed: Tensor = high * self.excitation(low)
        return weighed


def skips(image_size: int) -> list[tuple[int, int]]:
    """Sizes (low, high) of the levels that skips join: 8 to 128, 16 to 256, ...; in smaller images 8 to the last."""
    found = []
    low = _SKIP_FROM
    while low * _SKIP_RATIO <= image_size:
        found.append((low, low * _SKIP_RATIO))
        low *= 2
    return found or [(_SKIP_FROM, image_size)]


def glu_level(config: GeneratorConfig, in_channels: int, out_channels: int) -> nn.Sequential:
    """float [n, in_channels, s, s] -> [n, out_channels, 2s, 2s]."""
    return nn.Sequential(
        upsampling(config.upsample, in_channels, 2 * out_channels, kernel=4, bias=False),
        nn.BatchNorm2d(2 * out_channels),
        nn.GLU(dim=1),
    )
