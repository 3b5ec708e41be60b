"""Settings of a stain generator and its critic (configuration groups `generator`, `critic`)."""

from dataclasses import dataclass
from typing import Literal

from models.checks import check_at_least_one, check_choices
from models.layer_choices import Norm, Upsampling


@dataclass(frozen=True)
class GeneratorConfig:
    """A generator, images to images. The defaults are the thesis's U-Net (section 3.4, figure 24)."""

    architecture: Literal["unet", "resnet", "student"] = "unet"
    width: int = 64  # channels of the first level; 32 in StainNet's student
    depth: int = 7  # unet: number of halvings; each doubles the channels, up to 8 * width
    blocks: int = 9  # resnet: residual blocks
    norm: Norm = "instance"  # unet, resnet. "batch" takes statistics over all images of a call
    upsample: Upsampling = "transposed"  # unet, resnet. "nearest", then a 3x3 convolution, avoids checkerboards
    # noise: the network gives an image; identity: a change, tanh(atanh(image) + change), which starts at zero;
    # reinhard: the same after Reinhard's transfer to the target domain's colours (`Generator.target`).
    start: Literal["noise", "identity", "reinhard"] = "noise"

    def __post_init__(self) -> None:
        check_choices(self, "generator")
        for field in ("width", "depth", "blocks"):
            check_at_least_one(self, "generator", field)

    @property
    def size_multiple(self) -> int:
        """Number that divides the height and width of the images."""
        return {"unet": 2**self.depth, "resnet": 4, "student": 1}[self.architecture]


@dataclass(frozen=True)
class CriticConfig:
    """A PatchGAN critic. The defaults are the thesis's (section 3.4, figure 25), but for its instance norm.

    norm: a gradient penalty is defined per image, which excludes a batch norm (Gulrajani et al. 2017, section 4); an
    instance norm hides much of an image's mean colour.
    """

    width: int = 64  # channels of the first layer; each layer doubles them, up to 8 * width
    layers: int = 3  # convolutions of stride 2, before two of stride 1
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_choices(self, "critic")
        for field in ("width", "layers"):
            check_at_least_one(self, "critic", field)

    @property
    def smallest_image(self) -> int:
        """Least side in pixels that gives a score."""
        return 3 * 2**self.layers
