"""A part of the image that is hidden (DeVries and Taylor 2017, cutout)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import derive_key, uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, check_fraction, register
from data_pipeline.stream.augmentations.background import plasma_colours

_SMALLEST = 0.4  # shortest side of a rectangle, as a fraction of the longest


@register("cutout", order=70)
@dataclass(frozen=True)
class Cutout(Augmentation):
    """Hides a rectangle of the image."""

    cutout: float = 0.0  # longest side of the rectangle, as a fraction of the image's side
    cutout_probability: float = 1.0  # fraction of the images that lose a rectangle

    def __post_init__(self) -> None:
        check_fraction("cutout", self.cutout)
        check_fraction("cutout_probability", self.cutout_probability)

    @property
    def active(self) -> bool:
        return self.cutout > 0 and self.cutout_probability > 0

    def draw(self, key: int, positions: npt.ArrayLike, image_size: int) -> Parameters:
        draws = uniform(key, positions, 5)
        sides = self.cutout * (_SMALLEST + (1 - _SMALLEST) * draws[:, 1:3])
        return {
            "chosen": draws[:, 0] < self.cutout_probability,
            "anchor": (draws[:, 3:5] - sides / 2).astype(np.float32),
            "sides": sides.astype(np.float32),
            "colour": plasma_colours(derive_key(key, "colour"), positions),
        }

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn

        if given["chosen"]:
            images = fn.erase(
                images, anchor=given["anchor"], shape=given["sides"], normalized=True, fill_value=given["colour"]
            )
        return images
