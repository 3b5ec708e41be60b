"""CycleGAN's generator (Zhu et al. 2017, appendix 7.2; thesis, section 3.4, figure 23)."""

from torch import Tensor, nn

from models.layer_choices import Norm
from models.layers import normalization, upsampling
from models.stain.config import GeneratorConfig


class ResNetGenerator(nn.Module):
    """float [n, 3, H, W] -> [n, 3, H, W] before its tanh; H and W are multiples of 4, at least 8.

    A 7x7 convolution, two of stride 2, `blocks` residual blocks, two upsamplings, a 7x7 convolution. Reflection
    padding has no deterministic backward pass on CUDA.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width, bias = config.width, config.norm == "none"
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 7, padding=3, padding_mode="reflect", bias=bias),
            normalization(config.norm, width),
            nn.ReLU(inplace=True),
        ]
        for channels in (width, 2 * width):
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=bias),
                normalization(config.norm, 2 * channels),
                nn.ReLU(inplace=True),
            ]
        layers += [ResidualBlock(4 * width, config.norm) for _ in range(config.blocks)]
        for channels in (4 * width, 2 * width):
            layers += [
                upsampling(config.upsample, channels, channels // 2, kernel=3, bias=bias),
                normalization(config.norm, channels // 2),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, 3, 7, padding=3, padding_mode="reflect")

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.trunk(images))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection: float [n, C, H, W] -> the same; no ReLU after the sum."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "none"
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=bias),
            normalization(norm, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=bias),
            normalization(norm, channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.branch(features)
        return features + changed
