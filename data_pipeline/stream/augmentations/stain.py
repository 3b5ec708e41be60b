"""Stain augmentation in optical density, OD = -log((I + 1) / 256) of an 8-bit intensity I."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import derive_key, normal, uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, check_fraction, register

FloatArray = npt.NDArray[np.float32]

# Optical density of methylene blue and eosin in Giemsa, per unit of dye, in red, green and blue
# (Ruifrok and Johnston 2001, vectors of the colour deconvolution plugin); the third row is the residual.
_METHYLENE_BLUE = np.array([0.834750233, 0.513556283, 0.196330403])
_EOSIN = np.array([0.092789, 0.954111, 0.283111])
_RESIDUAL = np.cross(_METHYLENE_BLUE, _EOSIN) / np.linalg.norm(np.cross(_METHYLENE_BLUE, _EOSIN))
STAIN_VECTORS = np.stack([_METHYLENE_BLUE, _EOSIN, _RESIDUAL])

DENSITY_OF_INTENSITY: FloatArray = -np.log((np.arange(256) + 1) / 256).astype(np.float32)
# Augmented densities are held in 16 bits, up to twice the densest of an 8-bit image; one step
# of 1.7e-4 is finer than the finest step of an 8-bit image (3.9e-3).
STEPS_PER_DENSITY = 65535 / (2 * float(DENSITY_OF_INTENSITY[0]))


@register("stain", order=20)
@dataclass(frozen=True)
class Stain(Augmentation):
    """Gives images stains of their own: OD' = matrix @ OD + offset."""

    dye_amount: float = 0.0  # standard deviation of the log amount of each dye
    channel_gain: float = 0.0  # standard deviation of the diagonal of a random 3x3 matrix around the identity
    channel_mixing: float = 0.0  # standard deviation of that matrix's off-diagonal elements
    density_offset: float = 0.0  # standard deviation of a constant added to each channel's density
    stain_probability: float = 1.0  # fraction of the images that are changed

    bytes_per_value: ClassVar[int] = 4 + 4 + 2 + 4  # float32 densities twice, 16-bit densities, float32 intensities

    def __post_init__(self) -> None:
        check_fraction("stain_probability", self.stain_probability)

    @property
    def active(self) -> bool:
        amounts = (self.dye_amount, self.channel_gain, self.channel_mixing, self.density_offset)
        return self.stain_probability > 0 and any(amount > 0 for amount in amounts)

    def draw(self, key: int, positions: npt.ArrayLike, image_size: int) -> Parameters:
        matrix, offset = self.changes(key, positions)
        # The graph's second table is indexed by density steps.
        return {"matrix": matrix * STEPS_PER_DENSITY, "offset": offset * STEPS_PER_DENSITY}

    def changes(self, key: int, positions: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Matrix float32 [n, 3, 3] and offset float32 [n, 3] of optical density; channels red, green, blue."""
        draws = normal(key, positions, 15)
        draws = draws * (uniform(derive_key(key, "moved"), positions, 1) < self.stain_probability)
        recombined = dye_matrix(np.exp(self.dye_amount * draws[:, :3]))
        deviation = np.where(np.eye(3, dtype=bool), self.channel_gain, self.channel_mixing)
        mixing = np.eye(3) + deviation * draws[:, 3:12].reshape(-1, 3, 3)
        offset = self.density_offset * draws[:, 12:15]
        return (mixing @ recombined).astype(np.float32), offset.astype(np.float32)

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn, types

        # Table look-ups both ways: exp and log would cost most on a CPU.
        density_table, intensity_table = _look_up_tables()
        density = fn.lookup_table(images, keys=list(range(256)), values=density_table, dtype=types.FLOAT)
        changed = fn.coord_transform(density, M=given["matrix"], T=given["offset"])
        steps = fn.cast(changed, dtype=types.UINT16)  # saturates at 0 and 65535
        return fn.lookup_table(steps, keys=list(range(65536)), values=intensity_table, dtype=types.FLOAT)


def dye_matrix(amounts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Matrices [n, 3, 3] of optical density that multiply each dye (methylene blue, eosin, the rest) by amounts [n, 3].

    OD = stain vectors^T @ dye amounts: separate, scale each dye, recombine.
    """
    return np.asarray(STAIN_VECTORS.T @ (amounts[:, :, None] * np.linalg.inv(STAIN_VECTORS.T)))


@cache
def _look_up_tables() -> tuple[list[float], list[float]]:
    """Density of each 8-bit intensity; intensity in [0, 255] of each 16-bit density step."""
    density = np.arange(65536) / STEPS_PER_DENSITY
    return DENSITY_OF_INTENSITY.tolist(), (256 * np.exp(-density) - 1).clip(0, 255).tolist()
