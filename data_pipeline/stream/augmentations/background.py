"""Another background: a classifier is not to look at red cells and plasma, which differ between laboratories."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import derive_key, uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, check_fraction, register
from data_pipeline.stream.augmentations.stain import DENSITY_OF_INTENSITY

# The dyes of a nucleus absorb red light more than blue, haemoglobin and eosin blue more than red. A pixel is a
# nucleus's where its density in red less that in blue is above the image's mean by so much.
_NUCLEUS = 0.15
_SPREAD = (0.06, 0.08)  # standard deviation of the Gaussian around a nucleus that keeps its cytoplasm, of the side
_MASK = 48  # side in pixels of the mask, which is smooth
_PLASMA = 0.1  # density in green, above the image's lowest, up to which a pixel is plasma's
_FOUND = 0.03  # share of kept pixels below which no cell is taken to be found, and the background fades back


@register("background", order=15)
@dataclass(frozen=True)
class Background(Augmentation):
    """Mixes a plain colour into what surrounds nucleated cells."""

    background: float = 0.0  # largest share of the plain colour
    background_probability: float = 1.0  # fraction of the images whose background is changed

    bytes_per_value: ClassVar[int] = 2 + 4 + 4  # float32 mask of one channel, float32 images before and after

    def __post_init__(self) -> None:
        check_fraction("background", self.background)
        check_fraction("background_probability", self.background_probability)

    @property
    def active(self) -> bool:
        return self.background > 0 and self.background_probability > 0

    def draw(self, key: int, positions: npt.ArrayLike, image_size: int) -> Parameters:
        draws = uniform(key, positions, 3)
        narrow, wide = _SPREAD
        return {
            "chosen": draws[:, 0] < self.background_probability,
            "share": (self.background * draws[:, 1]).astype(np.float32),
            "colour": plasma_colours(derive_key(key, "colour"), positions),
            "spread": (_MASK * (narrow + (wide - narrow) * draws[:, 2])).astype(np.float32),
        }

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn, math

        if given["chosen"]:
            kept = _cells(images, given["spread"])
            found = math.min(fn.reductions.mean(kept) / _FOUND, 1.0)
            colour = given["colour"].gpu() if images.device == "gpu" else given["colour"]
            mixed = images + (given["share"] * found) * (1 - kept) * (colour - images)
            images = fn.cast_like(mixed, images)
        return images


def _cells(images: Any, spread: Any) -> Any:
    """Mask float32 [S, S, 1]: 1 in nucleated cells, 0 in red cells and plasma. images: uint8; spread: see `draw`."""
    from nvidia.dali import fn, math, types

    small = fn.resize(images, size=[_MASK, _MASK])
    density = fn.lookup_table(small, keys=list(range(256)), values=DENSITY_OF_INTENSITY.tolist(), dtype=types.FLOAT)
    violet = fn.coord_transform(density, M=[1.0, 0.0, -1.0])
    nuclei = math.clamp((violet - fn.reductions.mean(violet)) / _NUCLEUS - 1, 0, 1)
    near = math.clamp(8 * fn.gaussian_blur(nuclei, sigma=spread) - 0.4, 0, 1)
    green = fn.coord_transform(density, M=[0.0, 1.0, 0.0])  # which every dye absorbs
    kept = near * math.clamp((green - fn.reductions.min(green)) / _PLASMA - 0.5, 0, 1)
    return fn.resize(kept, size=fn.cast(images.shape()[:2], dtype=types.FLOAT))


def plasma_colours(key: int, positions: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Colours of empty plasma, from grey to white, yellowish, bluish or pink: float32 [n, 3], one of each sample."""
    draws = uniform(key, positions, 3)
    grey, warm, pink = 175 + 80 * draws[:, 0], 25 * (2 * draws[:, 1] - 1), 20 * draws[:, 2]
    return np.stack([grey + warm, grey - pink, grey - warm], 1).clip(0, 255).astype(np.float32)
