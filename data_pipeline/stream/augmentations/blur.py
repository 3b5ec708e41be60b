"""Blur of a cell out of focus."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, check_fraction, register


@register("blur", order=30)
@dataclass(frozen=True)
class Blur(Augmentation):
    """Blurs images by a Gaussian."""

    blur: float = 0.0  # largest standard deviation of the Gaussian, as a fraction of the image's side
    blur_probability: float = 1.0  # fraction of the images that are blurred

    bytes_per_value: ClassVar[int] = 4 + 4  # float32 after the columns and after the rows

    def __post_init__(self) -> None:
        check_fraction("blur_probability", self.blur_probability)

    @property
    def active(self) -> bool:
        return self.blur > 0 and self.blur_probability > 0

    def draw(self, key: int, positions: npt.ArrayLike, image_size: int) -> Parameters:
        draws = uniform(key, positions, 2)
        # In pixels, above 0.
        sigma = self.blur * image_size * (1 - draws[:, 1])
        return {"chosen": draws[:, 0] < self.blur_probability, "sigma": sigma.astype(np.float32)}

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn

        if given["chosen"]:
            images = fn.gaussian_blur(images, sigma=given["sigma"])
        return images
