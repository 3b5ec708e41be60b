"""Layers that the generators and the critic share."""

from torch import nn

from models.stain.config import Norm, Upsampling

SLOPE = 0.2  # of every LeakyReLU


def normalization(kind: Norm, channels: int) -> nn.Module:
    """A norm of float [n, channels, H, W] with a learned scale and offset, or the identity.

    The convolution before a norm needs no bias: the norm takes its mean away.
    """
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def upsampling(kind: Upsampling, in_channels: int, out_channels: int, kernel: int, bias: bool) -> nn.Module:
    """Twice the size: float [n, in_channels, H, W] -> [n, out_channels, 2H, 2W].

    kernel: side of the transposed convolution's, 3 or 4. "nearest" repeats pixels, then convolves 3x3: each
    output pixel has the same number of inputs, where a transposed convolution may draw a checkerboard
    (Odena, Dumoulin and Olah 2016).
    """
    if kind == "transposed":
        # output_padding makes up the pixel that an odd kernel falls short of 2H
        return nn.ConvTranspose2d(in_channels, out_channels, kernel, 2, 1, output_padding=kernel % 2, bias=bias)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    )


def initialise(network: nn.Module) -> None:
    """Normal weights of deviation 0.02, as pix2pix and CycleGAN start (Isola et al. 2017, section 6.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.InstanceNorm2d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
