"""What a stain generator and its critic are, as plain typed values (configuration groups `generator`, `critic`)."""

from dataclasses import dataclass
from typing import Literal

from models.checks import check_at_least_one, check_choices
from models.layer_choices import Norm, Upsampling


@dataclass(frozen=True)
class GeneratorConfig:
    """One generator, images to images. The defaults are the thesis's U-Net (section 3.4, figure 24)."""

    architecture: Literal["unet", "resnet", "student"] = "unet"
    width: int = 64  # channels of the first level; StainNet's student has 32
    depth: int = 7  # unet: halvings of the image; the channels double with each, up to 8 * width
    blocks: int = 9  # resnet: residual blocks
    norm: Norm = "instance"  # unet, resnet. "batch" joins the statistics of all images of a call
    upsample: Upsampling = "transposed"  # unet, resnet. "nearest" and a 3x3 convolution leaves no checkerboard
    # The network learns an image; or a change, tanh(atanh(image) + change), that starts at none; or one of the image
    # after Reinhard's transfer to its domain's colours (`Generator.target`).
    start: Literal["noise", "identity", "reinhard"] = "noise"

    def __post_init__(self) -> None:
        check_choices(self, "generator")
        for field in ("width", "depth", "blocks"):
            check_at_least_one(self, "generator", field)

    @property
    def size_multiple(self) -> int:
        """What height and width of the images must be multiples of."""
        return {"unet": 2**self.depth, "resnet": 4, "student": 1}[self.architecture]


@dataclass(frozen=True)
class CriticConfig:
    """One PatchGAN critic. With an instance norm the defaults are the thesis's (section 3.4, figure 25).

    "none" is what a gradient penalty wants: it is defined for each image by itself (Gulrajani et al. 2017,
    section 4, which rules out batch norm), and an instance norm hides much of an image's mean colour.
    """

    width: int = 64  # channels of the first layer; they double with each layer, up to 8 * width
    layers: int = 3  # convolutions of stride 2; two of stride 1 follow
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_choices(self, "critic")
        for field in ("width", "layers"):
            check_at_least_one(self, "critic", field)

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the patch that one score sees: 70 for three layers."""
        side = 7  # of the two last 4x4 convolutions
        for _ in range(self.layers):
            side = 2 * side + 2
        return side

    @property
    def smallest_image(self) -> int:
        """The shortest side in pixels that still gives a score."""
        return 3 * 2**self.layers
