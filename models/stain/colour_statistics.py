"""Reinhard's transfer: replaces an image's colour statistics by others (Reinhard et al. 2001, in CIELAB)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.stain.cielab import lab_to_rgb, rgb_to_lab

# Least deviation of a flat image, in CIELAB units: a tenth of what one grey level in 255 makes.
_FLAT = 0.04


@dataclass(frozen=True)
class ColourStatistics:
    """Statistics of L*, a*, b* over an image's pixels, of n images."""

    mean: Tensor  # float32 [n, 3, 1, 1]
    deviation: Tensor  # standard deviation, float32 [n, 3, 1, 1], at least 0.04

    @classmethod
    def of_each(cls, lab: Tensor) -> "ColourStatistics":
        """Statistics of each image of a batch [n, 3, H, W] in CIELAB."""
        variance, mean = torch.var_mean(lab, dim=(2, 3), correction=0, keepdim=True)
        # sqrt has an infinite derivative at zero.
        return cls(mean, variance.clamp_min(_FLAT**2).sqrt())

    @classmethod
    def typical(cls, images: Tensor) -> "ColourStatistics":
        """Averages of the statistics of images float [n, 3, H, W] in [-1, 1], as those of one image (n = 1)."""
        each = cls.of_each(rgb_to_lab(images))
        return cls(each.mean.mean(0, keepdim=True), each.deviation.mean(0, keepdim=True))

    def as_lists(self) -> dict[str, list[float]]:
        """Mean and deviation as lists of three numbers, for JSON; only for n = 1."""
        return {"mean": self.mean.flatten().tolist(), "deviation": self.deviation.flatten().tolist()}


def restain(images: Tensor, source: ColourStatistics | None, target: ColourStatistics) -> Tensor:
    """Apply the map from `source`'s statistics to `target`'s to images float [n, 3, H, W] in [-1, 1].

    source: None takes each image's own statistics, which then become the target's. Colours outside sRGB are clipped.
    """
    lab = rgb_to_lab(images)
    source = source or ColourStatistics.of_each(lab)
    gain = target.deviation.to(lab) / source.deviation.to(lab)
    return lab_to_rgb((lab - source.mean.to(lab)) * gain + target.mean.to(lab))
