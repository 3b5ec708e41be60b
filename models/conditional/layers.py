"""The residual block that all networks of section 3.5 are made of, and how their weights begin."""

import math
from typing import cast

from torch import Tensor, nn

from models.conditional.config import Norm
from models.layers import SLOPE, normalization


class ResidualBlock(nn.Module):
    """Two 3x3 layers and a shortcut around them: float [n, C, H, W] -> the same.

    transposed: "two deconvolution layers for each residual block" (section 3.5), the generator's; else two
    convolutions. Norm and LeakyReLU come before each, so nothing is done to what the shortcut carries.
    """

    def __init__(self, channels: int, norm: Norm, *, transposed: bool) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d if transposed else nn.Conv2d
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [normalization(norm, channels), nn.LeakyReLU(SLOPE)]
            layers.append(layer(channels, channels, 3, 1, 1, bias=norm == "none"))  # a norm takes a bias away again
        self.branch = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = features + self.branch(features)
        return changed


def initialise(network: nn.Module) -> None:
    """Weights under which every layer passes on the strength of what it is given (He et al. 2015, eq. 15).

    Each residual block adds 1 / blocks of a signal's strength, so that a deep network without norms does not
    begin with scores that double with every block. Nothing is random but the weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (1 + SLOPE**2) / _inputs(module)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    for block in blocks:
        last = cast(nn.Conv2d | nn.ConvTranspose2d, block.branch[-1])
        last.weight.data /= math.sqrt(len(blocks))


def _inputs(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    """How many numbers one output of a layer is summed from; of a transposed convolution with stride, on average."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    area = math.prod(layer.kernel_size) * layer.in_channels
    return area / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else area
