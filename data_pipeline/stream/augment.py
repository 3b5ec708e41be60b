"""Per-sample augmentation parameters, drawn by position in the global order (contracts C6, C7)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import derive_key, normal, uniform

FloatArray = npt.NDArray[np.float32]
# What is to be done to pixels' places: nothing; a mirroring; an upright or quarter-turned rectangle of the image
# becomes the whole; any affine map. Each costs more than the one before it.
Geometry = Literal["none", "mirror", "region", "affine"]

# Optical density of methylene blue and eosin in Giemsa, per unit of dye, in red, green and blue
# (Ruifrok and Johnston 2001, vectors of the colour deconvolution plugin); the third row is what
# the two leave over.
_METHYLENE_BLUE = np.array([0.834750233, 0.513556283, 0.196330403])
_EOSIN = np.array([0.092789, 0.954111, 0.283111])
_RESIDUAL = np.cross(_METHYLENE_BLUE, _EOSIN) / np.linalg.norm(np.cross(_METHYLENE_BLUE, _EOSIN))
STAIN_VECTORS = np.stack([_METHYLENE_BLUE, _EOSIN, _RESIDUAL])


@dataclass(frozen=True)
class AugmentConfig:
    """How far a training image may be moved. Every default of 0 leaves that part alone.

    Geometry: `rotation` degrees either way, in multiples of `rotation_step` where that is above 0 (quarter
    turns interpolate nothing); `scale` as a factor, drawn log-uniformly from
    [1/scale, scale]; `shift` as a fraction of the image's side; `flip` mirrors half of the images.
    Stain, in optical density: `dye_amount` is the standard deviation of the log amount of each
    dye; `channel_gain` and `channel_mixing` those of the diagonal and off-diagonal of a random
    3x3 matrix; `density_offset` that of a constant added to each channel; `stain_probability`
    is the share of images whose stain is moved at all.
    """

    flip: bool = True
    rotation: float = 180.0
    rotation_step: float = 0.0
    scale: float = 1.15
    shift: float = 0.04
    dye_amount: float = 0.0
    channel_gain: float = 0.0
    channel_mixing: float = 0.0
    density_offset: float = 0.0
    stain_probability: float = 1.0

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"data.augment.scale={self.scale}: a factor of at least 1")
        if not 0 <= self.stain_probability <= 1:
            raise ValueError(f"data.augment.stain_probability={self.stain_probability}: must be from 0 to 1")

    @property
    def geometry(self) -> Geometry:
        """The cheapest kind that holds every map that can be drawn."""
        if self.rotation > 0 and (self.rotation_step == 0 or self.rotation_step % 90 != 0):
            return "affine"
        if self.rotation > 0 or self.scale > 1 or self.shift > 0:
            return "region"
        return "mirror" if self.flip else "none"

    @property
    def moves_stain(self) -> bool:
        """Whether any image's colour is changed at all."""
        amounts = (self.dye_amount, self.channel_gain, self.channel_mixing, self.density_offset)
        return self.stain_probability > 0 and any(amount > 0 for amount in amounts)


@dataclass(frozen=True)
class AugmentParameters:
    """Parameters of n samples.

    affine: float32 [n, 2, 3], maps an output pixel (x, y) to the input pixel it is taken from. mirror: int32
    [n], 1 where that includes a mirroring from left to right.
    density_matrix: float32 [n, 3, 3] and density_offset: float32 [n, 3], so that
    OD' = density_matrix @ OD + density_offset, channels in the order red, green, blue.
    """

    affine: FloatArray
    mirror: npt.NDArray[np.int32]
    density_matrix: FloatArray
    density_offset: FloatArray


def draw_parameters(config: AugmentConfig, seed: int, positions: npt.ArrayLike, image_size: int) -> AugmentParameters:
    """Parameters for the samples at these positions of the global order (not of the process)."""
    return AugmentParameters(
        *_geometry(config, derive_key(seed, "geometry"), positions, image_size),
        *_density(config, derive_key(seed, "stain"), positions),
    )


@dataclass(frozen=True)
class Regions:
    """Upright rectangles of n images, each of which becomes a whole output image.

    start, end: float32 [n, 2], in shares of the image's height and width, of the corners that become the output's
    first and last; an end before its start mirrors. transposed: bool [n], whether rows then become columns.
    """

    start: FloatArray
    end: FloatArray
    transposed: npt.NDArray[np.bool_]


def regions_of(affine: FloatArray, image_size: int) -> Regions:
    """The same maps as rectangles: `affine` float32 [n, 2, 3] with quarter turns only (Geometry "region")."""
    linear, translation = affine[:, :, :2], affine[:, :, 2]
    transposed = np.abs(linear[:, 0, 1]) > np.abs(linear[:, 0, 0])
    # How far the input's x and y go along the output's side that they follow.
    extent = np.where(transposed[:, None], linear[:, [0, 1], [1, 0]], linear[:, [0, 1], [0, 1]])
    start = translation / image_size
    corners = [corner[:, ::-1].astype(np.float32) for corner in (start, start + extent)]  # x, y -> height, width
    return Regions(corners[0], corners[1], transposed)


def _geometry(
    config: AugmentConfig, key: int, positions: npt.ArrayLike, image_size: int
) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    draws = uniform(key, positions, 6)
    degrees = config.rotation * (2 * draws[:, 0] - 1)
    if config.rotation_step > 0:
        degrees = config.rotation_step * np.round(degrees / config.rotation_step)
    angle = np.deg2rad(degrees)
    zoom = config.scale ** (2 * draws[:, 1] - 1)
    shift = config.shift * image_size * (2 * draws[:, 2:4] - 1)
    mirrored = (draws[:, 4] < 0.5) & config.flip
    mirror = np.where(mirrored, -1.0, 1.0)
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    linear = np.stack([np.stack([mirror * cosine, -sine], -1), np.stack([mirror * sine, cosine], -1)], 1)
    # Pixel centres lie at half-integers, so the image's centre is at image_size / 2.
    centre = np.full(2, image_size / 2)
    translation = centre + shift - linear @ centre
    affine = np.concatenate([linear, translation[..., None]], axis=2).astype(np.float32)
    return affine, mirrored.astype(np.int32)


def _density(config: AugmentConfig, key: int, positions: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    draws = normal(key, positions, 15)
    moved = uniform(derive_key(key, "moved"), positions, 1) < config.stain_probability
    draws = draws * moved
    dye_scale = np.exp(config.dye_amount * draws[:, :3])
    # OD = stain vectors^T @ dye amounts: separate, scale each dye, recombine.
    separated = np.linalg.inv(STAIN_VECTORS.T)
    recombined = STAIN_VECTORS.T @ (dye_scale[:, :, None] * separated)
    deviation = np.where(np.eye(3, dtype=bool), config.channel_gain, config.channel_mixing)
    mixing = np.eye(3) + deviation * draws[:, 3:12].reshape(-1, 3, 3)
    offset = config.density_offset * draws[:, 12:15]
    return (mixing @ recombined).astype(np.float32), offset.astype(np.float32)
