"""Builds stain networks from a GeneratorConfig or a CriticConfig."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.stain.colour_statistics import ColourStatistics, restain
from models.stain.config import CriticConfig, GeneratorConfig
from models.stain.patch_critic import PatchCritic
from models.stain.resnet_generator import ResNetGenerator
from models.stain.student import Student
from models.stain.unet import UNet

BODIES: dict[str, type[UNet] | type[ResNetGenerator] | type[Student]] = {
    "unet": UNet,
    "resnet": ResNetGenerator,
    "student": Student,
}

# A quarter of an 8-bit grey level below 1: black and white survive rounding, and tanh still has a gradient.
BRIGHTEST = 1 - 0.25 * 2 / 255


class Generator(nn.Module):
    """A body and its tanh: images float [n, 3, H, W] in [-1, 1] -> float32 of the same shape in [-1, 1].

    start: with "identity" the body's last layer is initialised to zero and its output is added to the image before the
    tanh: the network starts as the identity, to within a quarter of an 8-bit grey level. "reinhard" does the same to
    the image after Reinhard's transfer to the colours of `target`; the body sees that image only, so a slide's tint is
    removed first. Transfer and addition are float32 in every precision: bfloat16 has steps of 1/256 below 1, half a
    grey level.
    """

    target_mean: Tensor
    target_deviation: Tensor

    def __init__(self, body: UNet | ResNetGenerator | Student, start: Literal["noise", "identity", "reinhard"]) -> None:
        super().__init__()
        self.body = body
        self.start = start
        if start == "reinhard":
            self.register_buffer("target_mean", torch.zeros(1, 3, 1, 1))
            self.register_buffer("target_deviation", torch.ones(1, 3, 1, 1))
        if start != "noise":
            for parameter in body.last.parameters():
                nn.init.zeros_(parameter)

    @property
    def target(self) -> ColourStatistics:
        """Colours that images are given before the body; with start "reinhard" only."""
        return ColourStatistics(self.target_mean, self.target_deviation)

    @target.setter
    def target(self, statistics: ColourStatistics) -> None:
        self.target_mean.copy_(statistics.mean)
        self.target_deviation.copy_(statistics.deviation)

    def forward(self, images: Tensor) -> Tensor:
        if self.start == "reinhard":
            with torch.autocast(images.device.type, enabled=False):
                images = restain(images.float(), None, self.target)
        change: Tensor = self.body(images).float()
        if self.start != "noise":
            change = change + torch.atanh(images.float().clamp(-BRIGHTEST, BRIGHTEST))
        return torch.tanh(change)


def build_generator(config: GeneratorConfig, image_size: int | tuple[int, int]) -> Generator:
    """Build a generator: images float [n, 3, H, W] in [-1, 1] -> float32 of the same shape in [-1, 1].

    image_size: side of a square in pixels, or (H, W). Weights do not depend on it: they fit every multiple of
    `config.size_multiple`. ModelError for a size that the network does not take.
    """
    check_size(config, image_size)
    body = BODIES[config.architecture](config)
    if config.architecture != "student" and config.start == "noise":
        # A student has no norms: weights this small would let its signals fade, so it keeps torch's initialisation.
        _initialise(body)
    return Generator(body, config.start)


def check_size(config: GeneratorConfig, image_size: int | tuple[int, int]) -> None:
    """ModelError if the generator does not take this height or width."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    said = f"images of {height} x {width} pixels do not fit generator.architecture={config.architecture}"
    if config.architecture == "resnet" and min(height, width) < 8:  # reflection needs a quarter of 2 pixels
        raise ModelError(f"{said}: each side must be at least 8; give larger images")
    if height < 1 or width < 1 or height % config.size_multiple or width % config.size_multiple:
        advice = "give images of such a size"
        if config.architecture == "unet":
            said += f" with generator.depth={config.depth}"
            common = math.gcd(height, width)
            deepest = (common & -common).bit_length() - 1  # the largest power of two in both
            advice += f" or generator.depth={deepest}" if deepest > 0 else ""
        raise ModelError(f"{said}: each side must be a multiple of {config.size_multiple}; {advice}")


def build_critic(config: CriticConfig, image_size: int | tuple[int, int], in_channels: int = 3) -> PatchCritic:
    """Build a critic: float [n, in_channels, H, W] -> one score per patch, float [n, 1, h, w], no sigmoid.

    image_size: side of a square in pixels, or (H, W). in_channels: 6 for an image beside its condition. ModelError if
    the image is too small for one score.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < config.smallest_image:
        raise ModelError(
            f"images of {height} x {width} pixels are too small for critic.layers={config.layers}: each side must "
            f"be at least {config.smallest_image}; give critic.layers a lower number or larger images"
        )
    critic = PatchCritic(config, in_channels)
    _initialise(critic)
    return critic


def _initialise(network: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, as in pix2pix and CycleGAN (Isola et al. 2017, section 6.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.InstanceNorm2d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
