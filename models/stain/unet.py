"""The U-Net generator (thesis, section 3.4, figure 24; Isola et al. 2017, pix2pix, section 6.1.1)."""

import torch
from torch import Tensor, nn

from models.layers import SLOPE, normalization, upsampling
from models.stain.config import GeneratorConfig


class UNet(nn.Module):
    """float [n, 3, H, W] -> [n, 3, H, W] before its tanh; 2**depth divides H and W.

    Each encoder level halves the map by a 4x4 convolution of stride 2; each decoder level doubles it and is
    concatenated with the encoder's features of that size. LeakyReLU on both sides, as in the thesis (pix2pix: ReLU in
    the decoder). No norm in the first and deepest encoder levels and the last decoder level: the outer two carry the
    colours, and the deepest map may be 1x1, which an instance norm turns to zero. Weights fit every image size.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        widths = [config.width * min(2**level, 8) for level in range(config.depth)]
        self.encoder = nn.ModuleList()
        channels = 3
        for level, width in enumerate(widths):
            norm = config.norm if 0 < level < config.depth - 1 else "none"
            self.encoder.append(
                nn.Sequential(
                    nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=norm == "none"),
                    normalization(norm, width),
                    nn.LeakyReLU(SLOPE, inplace=True),
                )
            )
            channels = width
        self.decoder = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.decoder.append(
                nn.Sequential(
                    upsampling(config.upsample, channels, width, kernel=4, bias=config.norm == "none"),
                    normalization(config.norm, width),
                    nn.LeakyReLU(SLOPE, inplace=True),
                )
            )
            channels = 2 * width  # concatenated with the encoder's features
        self.last = upsampling(config.upsample, channels, 3, kernel=4, bias=True)

    def forward(self, images: Tensor) -> Tensor:
        features, skips = images, []
        for level in self.encoder:
            features = level(features)
            skips.append(features)
        skips.pop()  # the decoder starts from the deepest map
        for level in self.decoder:
            features = torch.cat([level(features), skips.pop()], dim=1)
        return self.last(features)
