"""Losses of JPEG compression."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, check_fraction, register


@register("compression", order=60)
@dataclass(frozen=True)
class Compression(Augmentation):
    """Compresses images as JPEG files."""

    jpeg_quality: int = 100  # lowest quality, 1 to 100; 100 leaves images as they are
    jpeg_probability: float = 1.0  # fraction of the images that are compressed

    bytes_per_value: ClassVar[int] = 1 + 1  # 8-bit images before and after

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"data.augment.jpeg_quality={self.jpeg_quality}: must be from 1 to 100")
        check_fraction("jpeg_probability", self.jpeg_probability)

    @property
    def active(self) -> bool:
        return self.jpeg_quality < 100 and self.jpeg_probability > 0

    def draw(self, key: int, positions: npt.ArrayLike, image_size: int) -> Parameters:
        draws = uniform(key, positions, 2)
        quality = self.jpeg_quality + np.floor((100 - self.jpeg_quality) * draws[:, 1])
        return {"chosen": draws[:, 0] < self.jpeg_probability, "quality": quality.astype(np.int32)}

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn, types

        if given["chosen"]:
            compressed = fn.jpeg_compression_distortion(fn.cast(images, dtype=types.UINT8), quality=given["quality"])
            images = fn.cast_like(compressed, images)
        return images
