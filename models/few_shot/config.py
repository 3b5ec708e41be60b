"""Configurations of the few-shot networks (groups `generator`, `encoder`, `discriminator`)."""

from dataclasses import dataclass

from models.checks import check_at_least_one, check_choices
from models.errors import ModelError
from models.layer_choices import Upsampling

SMALLEST_IMAGE = 32  # three halvings leave the discriminator a 4x4 map


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator with skip-layer excitation (thesis, section 3.6, figures 31, 32): 5.9 M parameters by default."""

    width: int = 32  # channels of the 128-pixel level; see `channels_at`
    latent_size: int = 128  # normal numbers of one image
    skip_excitation: bool = True
    upsample: Upsampling = "transposed"  # "nearest": repeated pixels and a 3x3 convolution, without a checkerboard

    def __post_init__(self) -> None:
        check_choices(self, "generator")
        check_at_least_one(self, "generator", "latent_size")
        if self.width < 2:
            raise ModelError(f"generator.width={self.width}: must be at least 2")

    def channels_at(self, size: int) -> int:
        """Channels of the level of `size` pixels: 8 widths at 4 and 8 pixels, then fewer."""
        return max(1, int(self.width * {4: 8, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1}.get(size, 128 / size)))


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder of images into feature vectors (thesis, section 3.6, figure 33)."""

    width: int = 32  # channels of the first residual block, doubled by each further one
    feature_size: int = 128

    def __post_init__(self) -> None:
        for field in ("width", "feature_size"):
            check_at_least_one(self, "encoder", field)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminator (thesis, section 3.6, figure 34)."""

    width: int = 32  # channels of the first convolution, doubled with each halving of the image
    spectral_norm: bool = True  # of the three pairs of convolutions; false with a gradient penalty

    def __post_init__(self) -> None:
        check_at_least_one(self, "discriminator", "width")


def check_image_size(size: int) -> None:
    """ModelError unless the networks take square images of this side in pixels."""
    if size < SMALLEST_IMAGE or size & (size - 1):
        raise ModelError(
            f"images of {size} x {size} pixels do not fit the few-shot networks: give data.image_size a power of two "
            f"of at least {SMALLEST_IMAGE}"
        )
