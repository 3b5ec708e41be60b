"""Images turned grey, and a generator that colours them (pix2pix as a normaliser)."""

from torch import Tensor, nn

# ITU-R BT.601: how bright red, green and blue look.
_LUMINANCE = (0.299, 0.587, 0.114)


def to_grey(images: Tensor) -> Tensor:
    """Luminance in all three channels: float [n, 3, H, W] in [-1, 1] -> the same shape and range."""
    weights = images.new_tensor(_LUMINANCE).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


class ColourGrey(nn.Module):
    """Turns images grey, then colours them with `generator`: float [n, 3, H, W] in [-1, 1] -> the same."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        return self.generator(to_grey(images))
