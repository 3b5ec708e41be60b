"""The encoder of the few-shot GAN (thesis, section 3.6, figure 33)."""

from torch import Tensor, nn
from torch.nn import functional

from models.few_shot.config import EncoderConfig, check_image_size

_BLOCKS = 4
_GRID = 4  # side of the map that the fully connected layer sees


class Encoder(nn.Module):
    """Images float [n, 3, S, S] in [-1, 1] -> feature vectors float32 [n, feature_size].

    Four residual blocks, max pooling after the first three, a fully connected layer. The map of S/8 pixels is
    averaged to 4x4 before the last: at 128 pixels a layer over all of it would hold twice the generator's weights.
    """

    def __init__(self, config: EncoderConfig, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        layers: list[nn.Module] = []
        channels = 3
        for number in range(_BLOCKS):
            width = config.width * 2**number
            layers.append(ResidualBlock(channels, width))
            if number < _BLOCKS - 1:
                layers.append(nn.MaxPool2d(2))
            channels = width
        left = image_size // 2 ** (_BLOCKS - 1)
        self.blocks = nn.Sequential(*layers, nn.AvgPool2d(left // _GRID))
        self.last = nn.Linear(channels * _GRID**2, config.feature_size)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.last(self.blocks(images).flatten(1))
        return features.float()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a 1x1 shortcut: float [n, in, H, W] -> [n, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.branch(images) + self.shortcut(images))
