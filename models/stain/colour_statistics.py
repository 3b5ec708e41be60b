"""Reinhard's transfer: an image's colour statistics are exchanged for another's (Reinhard et al. 2001, in CIELAB)."""

import torch
from torch import Tensor

from models.stain.cielab import lab_to_rgb, rgb_to_lab

# An image of less contrast than this, in CIELAB units, is flat: a tenth of what one grey level in 255 makes.
_FLAT = 0.04


class ColourStatistics:
    """Mean and standard deviation of L*, a*, b* over the pixels, each float32 [n, 3, 1, 1]; a flat image's is 0.04."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self.mean = mean
        self.deviation = deviation

    @classmethod
    def of_each(cls, lab: Tensor) -> "ColourStatistics":
        """Of each image [n, 3, H, W] in CIELAB."""
        variance, mean = torch.var_mean(lab, dim=(2, 3), correction=0, keepdim=True)
        # The root's derivative at zero is infinite.
        return cls(mean, variance.clamp_min(_FLAT**2).sqrt())

    @classmethod
    def typical(cls, images: Tensor) -> "ColourStatistics":
        """The averages of the statistics of images float [n, 3, H, W] in [-1, 1]: those of one image, n = 1."""
        each = cls.of_each(rgb_to_lab(images))
        return cls(each.mean.mean(0, keepdim=True), each.deviation.mean(0, keepdim=True))

    def as_lists(self) -> dict[str, list[float]]:
        """Of a single image (n = 1), for JSON."""
        return {"mean": self.mean.flatten().tolist(), "deviation": self.deviation.flatten().tolist()}


def restain(images: Tensor, source: ColourStatistics | None, target: ColourStatistics) -> Tensor:
    """Images float [n, 3, H, W] in [-1, 1] whose statistics go as `source`'s go to `target`'s.

    source: None takes each image's own, which then become the target's. Colours that sRGB lacks are clipped.
    """
    lab = rgb_to_lab(images)
    source = source or ColourStatistics.of_each(lab)
    gain = target.deviation.to(lab) / source.deviation.to(lab)
    return lab_to_rgb((lab - source.mean.to(lab)) * gain + target.mean.to(lab))
