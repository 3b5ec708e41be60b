"""Squeeze-and-excitation (Hu et al. 2018) and SENet-154's block of it.

Layers, names and arithmetic are those of timm.models.senet, so that timm's weights fit. Importing timm's own would take
as long as building a small network and its data stream.
"""

from torch import Tensor, nn


class SEModule(nn.Module):
    """Scales each channel by a gate in (0, 1) computed from all channels' means: float [n, C, H, W], same out."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, features: Tensor) -> Tensor:
        gate = self.fc2(self.relu(self.fc1(features.mean((2, 3), keepdim=True))))
        return features * self.sigmoid(gate)


class SEBottleneck(nn.Module):
    """SENet-154's block: 1x1, 3x3 and 1x1 convolution, squeeze-and-excitation, shortcut.

    float [n, in_channels, H, W] -> [n, 4 * width, ceil(H/stride), ceil(W/stride)].
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        groups: int,
        reduction: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 2 * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, 4 * width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * width)
        self.conv3 = nn.Conv2d(4 * width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.se_module = SEModule(4 * width, reduction)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.se_module(self.bn3(self.conv3(residual)))
        return self.relu(residual + shortcut)
