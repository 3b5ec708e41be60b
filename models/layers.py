"""Layers that networks of several families share."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layer_choices import Norm, Upsampling

SLOPE = 0.2  # of every LeakyReLU


def normalization(kind: Norm, channels: int) -> nn.Module:
    """A norm of float [n, channels, H, W] with a learned scale and offset, or the identity.

    The convolution before a norm needs no bias: the norm takes its mean away, or has an offset of its own.
    """
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    if kind == "pixel":
        return PixelNorm(channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


class PixelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of float [n, channels, H, W] (as in ConvNeXt, Liu et al. 2022).

    No statistic joins places or images: no place can outgrow the others unseen, as happens with batch norm.
    """

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def upsampling(kind: Upsampling, in_channels: int, out_channels: int, kernel: int, bias: bool) -> nn.Module:
    """Twice the size: float [n, in_channels, H, W] -> [n, out_channels, 2H, 2W].

    kernel: side of the transposed convolution's, 3 to 5. "nearest" repeats pixels, then convolves 3x3: each
    output pixel has the same number of inputs, where a transposed convolution may draw a checkerboard
    (Odena, Dumoulin and Olah 2016).
    """
    if kind == "transposed":
        # output_padding makes up the pixel that an odd kernel falls short of 2H
        padding = (kernel - 1) // 2
        return nn.ConvTranspose2d(in_channels, out_channels, kernel, 2, padding, kernel % 2, bias=bias)
    return NearestUpsampling(in_channels, out_channels, bias)


class SameSizeDeconvolution(nn.ConvTranspose2d):
    """A transposed convolution that keeps the size: float [n, in_channels, H, W] -> [n, out_channels, H, W].

    Computed as the convolution with its kernel turned, which is the same function; on CPUs the backward pass is faster.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, bias: bool = True) -> None:
        """kernel: side of the kernel, odd."""
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        turned = self.weight.flip(2, 3).transpose(0, 1)
        return functional.conv2d(features, turned, self.bias, padding=self.kernel_size[0] // 2)


class NearestUpsampling(nn.Conv2d):
    """Each pixel repeated to 2x2, then a 3x3 convolution: float [n, C, H, W] -> [n, out_channels, 2H, 2W].

    Computed as one transposed convolution of stride 2, whose 4x4 kernel is the sum of the 3x3 kernel's four
    shifts: the same numbers, with four multiplications for an output where nine were, and no map of repeated pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        turned = self.weight.flip(2, 3).transpose(0, 1)
        shifts = [functional.pad(turned, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1)]
        return functional.conv_transpose2d(features, torch.stack(shifts).sum(0), self.bias, stride=2, padding=1)
