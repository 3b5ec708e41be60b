"""Noise of a camera's sensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import derive_key, normal, uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, check_fraction, register

_MARGIN = 64  # pixels by which the field of noise is larger than an image: 65 x 65 regions, each with two signs
_STEPS = 32  # of the field's 8 bits per standard deviation: a range of four deviations
_CONSTANT = 0.25  # share of the variance at full intensity that does not depend on the light
_GREY = 0.6  # share of the variance that the channels have in common


@register("noise", order=50)
@dataclass(frozen=True)
class Noise(Augmentation):
    """Adds sensor noise, stronger in bright pixels."""

    noise: float = 0.0  # largest standard deviation in white, as a fraction of white
    noise_probability: float = 1.0  # fraction of the images that get noise

    bytes_per_value: ClassVar[int] = 1 + 4 + 4  # 8-bit noise, float32 deviations, float32 intensities

    def __post_init__(self) -> None:
        check_fraction("noise_probability", self.noise_probability)

    @property
    def active(self) -> bool:
        return self.noise > 0 and self.noise_probability > 0

    def draw(self, key: int, positions: npt.ArrayLike, image_size: int) -> Parameters:
        draws = uniform(key, positions, 5)
        sign = np.where(draws[:, 1] < 0.5, -1, 1)
        # A region of one field: DALI's own random numbers follow the order of its work, not the key.
        corners = (draws[:, 3:5] * (_MARGIN + 1)).astype(np.int64)
        field = _field(image_size + _MARGIN)
        return {
            "chosen": draws[:, 0] < self.noise_probability,
            "deviation": (self.noise * sign * draws[:, 2]).astype(np.float32),
            "region": np.stack([field[y : y + image_size, x : x + image_size] for y, x in corners]),
        }

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn, math

        if given["chosen"]:
            region = given["region"].gpu() if images.device == "gpu" else given["region"]
            deviation = 255 / _STEPS * given["deviation"] * math.sqrt(_CONSTANT + (1 - _CONSTANT) / 255 * images)
            images = fn.cast_like(math.clamp(images + region * deviation, 0, 255), images)
        return images


@cache
def _field(side: int) -> npt.NDArray[np.int8]:
    """Normal noise [side, side, 3] in steps."""
    draws = normal(derive_key(0, "noise"), np.arange(side * side), 4)
    noise = np.sqrt(_GREY) * draws[:, :1] + np.sqrt(1 - _GREY) * draws[:, 1:]
    return (_STEPS * noise).round().clip(-127, 127).astype(np.int8).reshape(side, side, 3)
