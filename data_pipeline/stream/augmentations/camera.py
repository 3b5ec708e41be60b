"""Errors of a camera's exposure and colours, in intensity (those of the stain are in optical density)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, register

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601)
_MIDDLE = 127.5  # the grey that a change of contrast keeps


@register("camera", order=40)
@dataclass(frozen=True)
class Camera(Augmentation):
    """Changes exposure, contrast and colours as cameras do."""

    exposure: float = 0.0  # largest change of the log intensity, either way
    contrast: float = 0.0  # largest change of the log contrast, either way
    midtones: float = 0.0  # largest lift of middle grey as a fraction of it, either way; black and white stay
    white_balance: float = 0.0  # largest change of each channel's log intensity, either way
    saturation: float = 0.0  # largest change of the log saturation, either way
    hue: float = 0.0  # largest rotation of the colours around grey in degrees, either way

    bytes_per_value: ClassVar[int] = 4 + 4 + 4  # float32 intensities three times

    def __post_init__(self) -> None:
        if not 0 <= self.midtones <= 0.5:
            raise ValueError(f"data.augment.midtones={self.midtones}: must be from 0 to 0.5")

    @property
    def active(self) -> bool:
        amounts = (self.exposure, self.contrast, self.midtones, self.white_balance, self.saturation, self.hue)
        return any(amount > 0 for amount in amounts)

    def draw(self, key: int, positions: npt.ArrayLike, image_size: int) -> Parameters:
        draws = 2 * uniform(key, positions, 8) - 1
        return camera_changes(
            gain=np.exp(self.exposure * draws[:, :1] + self.white_balance * draws[:, 1:4]),
            contrast=np.exp(self.contrast * draws[:, 4]),
            saturation=np.exp(self.saturation * draws[:, 5]),
            hue=np.deg2rad(self.hue * draws[:, 6]),
            midtones=self.midtones * draws[:, 7],
        )

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn, math, types

        changed = fn.coord_transform(images, M=given["matrix"], T=given["offset"], dtype=types.FLOAT)
        changed = math.clamp(changed, 0, 255)
        # A parabola through black and white in place of a power, which costs more.
        return changed + given["lift"] * changed * (255 - changed)


def camera_changes(
    gain: npt.NDArray[np.float64],
    contrast: npt.NDArray[np.float64],
    saturation: npt.NDArray[np.float64],
    hue: npt.NDArray[np.float64],
    midtones: npt.NDArray[np.float64],
) -> Parameters:
    """The parameters of `Camera` for changes of n images: gain [n, 3] of the channels, the others [n]; hue in radians.

    matrix [n, 3, 3] and offset [n, 3] of the intensity, lift [n] of the parabola; float32.
    """
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    cosine, sine = np.cos(hue)[:, None, None], np.sin(hue)[:, None, None]
    rotation = grey + cosine * (np.eye(3) - grey) + sine * cross  # around the axis of greys (Rodrigues)
    colour = saturation[:, None, None]
    saturated = colour * np.eye(3) + (1 - colour) * np.ones((3, 1)) * _LUMINANCE
    matrix = gain[:, :, None] * contrast[:, None, None] * (saturated @ rotation)
    offset = gain * (_MIDDLE * (1 - contrast))[:, None]
    lift = 2 * midtones / 255  # at middle grey the parabola is 255 / 4 of it
    return {name: value.astype(np.float32) for name, value in (("matrix", matrix), ("offset", offset), ("lift", lift))}
