"""What happens to images inside a network, before its first layer."""

from torch import Tensor, nn, tensor
from torch.nn import functional

# The percentiles of a channel that are brought to fixed values: its darkest pixels and its background.
_LOW, _HIGH = 0.02, 0.9
_STRETCHED = (-0.9, 0.8)
_LEAST_RANGE = 0.2  # a flat image is not stretched to noise
_SAMPLED_SIDE = 48  # about so many pixels along each side are looked at for the percentiles


class InputAdapter(nn.Module):
    """Gives images [n, 3, S, S] in [-1, 1] to a network that expects another size, range or normalisation.

    mean, std: the network's, per channel, of images in [0, 1]. least_size: smaller images are enlarged to this side.
    stretch: see `stretch_channels`. The statistics are not part of the state dict.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        least_size: int = 0,
        stretch: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.least_size, self.stretch = network, least_size, stretch
        means, deviations = tensor(mean).view(-1, 1, 1), tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 0.5 / deviations, persistent=False)
        self.register_buffer("offset", (0.5 - means) / deviations, persistent=False)

    def adapted(self, images: Tensor) -> Tensor:
        """Images as the network expects them: stretched and enlarged if configured, normalised to its mean and std."""
        if self.stretch:
            images = stretch_channels(images)
        if images.shape[-1] < self.least_size:
            images = functional.interpolate(images, (self.least_size, self.least_size), mode="bilinear")
        return images * self.scale + self.offset

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.adapted(images))


def stretch_channels(images: Tensor) -> Tensor:
    """Images [n, 3, S, S] in [-1, 1], each channel of each stretched between its 2nd and its 90th percentile.

    These go to -0.9 and 0.8, what is below and above is cut off at -1.2 and 1.2. A gain and an offset of a channel,
    such as another light, camera or amount of stain makes, then change nothing.
    """
    step = max(1, images.shape[-1] // _SAMPLED_SIDE)
    pixels = images[:, :, ::step, ::step].flatten(2).sort(dim=2).values
    count = pixels.shape[2]
    low, high = (pixels[:, :, int(share * count)][:, :, None, None] for share in (_LOW, _HIGH))
    bottom, top = _STRETCHED
    stretched = (images - low) / (high - low).clamp_min(_LEAST_RANGE) * (top - bottom) + bottom
    return stretched.clamp(-1.2, 1.2)
