"""The PatchGAN critic (thesis, section 3.4, figure 25; Isola et al. 2017, section 6.1.2)."""

from torch import Tensor, nn

from models.layers import SLOPE, normalization
from models.stain.config import CriticConfig


class PatchCritic(nn.Module):
    """float [n, in_channels, H, W] -> scores [n, 1, H // 2**layers - 2, W // 2**layers - 2], no sigmoid.

    4x4 convolutions, `layers` of stride 2 and two of stride 1, with LeakyReLU between them and a norm in all but the
    first and last. No layer works in place: a gradient penalty differentiates twice.
    """

    def __init__(self, config: CriticConfig, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for level in range(config.layers + 1):
            width = config.width * min(2**level, 8)
            stride = 2 if level < config.layers else 1
            norm = "none" if level == 0 else config.norm
            layers += [
                nn.Conv2d(channels, width, 4, stride=stride, padding=1, bias=norm == "none"),
                normalization(norm, width),
                nn.LeakyReLU(SLOPE),
            ]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels, 1, 4, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.trunk(images))
