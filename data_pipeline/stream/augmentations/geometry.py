"""Mirrors, rotations, zooms and shifts.

Zooms, shifts and quarter turns are arguments of the graph's resize, and a lone mirror one of its normalisation: they
cost nothing and interpolate nothing twice. Only other rotations need a warp of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, register

# From the cheapest: no-op; mirror; an upright or quarter-turned rectangle becomes the whole image; any affine map.
Kind = Literal["none", "mirror", "region", "affine"]

_ROUNDING = 1e-3  # pixels within which a border counts as reached


@register("geometry", order=10)
@dataclass(frozen=True)
class Geometry(Augmentation):
    """Mirrors, rotates, zooms and shifts."""

    flip: bool = True  # mirrors half of the images
    rotation: float = 180.0  # degrees, either way
    rotation_step: float = 0.0  # degrees; above 0, rotations are its multiples (90: nothing is interpolated)
    scale: float = 1.15  # zoom, log-uniform in [1/scale, scale]
    shift: float = 0.04  # either way, as a fraction of the image's side

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"data.augment.scale={self.scale}: must be at least 1")

    @property
    def kind(self) -> Kind:
        """The cheapest kind that holds every map that can be drawn."""
        if self.rotation > 0 and (self.rotation_step == 0 or self.rotation_step % 90 != 0):
            return "affine"
        if self.rotation > 0 or self.scale > 1 or self.shift > 0:
            return "region"
        return "mirror" if self.flip else "none"

    @property
    def active(self) -> bool:
        return self.kind != "none"

    def draw(self, key: int, positions: npt.ArrayLike, image_size: int) -> Parameters:
        affine, mirror = self.maps(key, positions, image_size)
        if self.kind == "mirror":
            return {"mirror": mirror}
        return regions_of(affine, image_size) if self.kind == "region" else {"affine": affine}

    def maps(
        self, key: int, positions: npt.ArrayLike, image_size: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Affine maps float32 [n, 2, 3] from output pixel (x, y) to input pixel, and int32 [n]: 1 where mirrored."""
        draws = uniform(key, positions, 6)
        degrees = self.rotation * (2 * draws[:, 0] - 1)
        if self.rotation_step > 0:
            degrees = self.rotation_step * np.round(degrees / self.rotation_step)
        angle = np.deg2rad(degrees)
        zoom = self.scale ** (2 * draws[:, 1] - 1)
        shift = self.shift * image_size * (2 * draws[:, 2:4] - 1)
        mirrored = (draws[:, 4] < 0.5) & self.flip
        mirror = np.where(mirrored, -1.0, 1.0)
        cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
        linear = np.stack([np.stack([mirror * cosine, -sine], -1), np.stack([mirror * sine, cosine], -1)], 1)
        # Pixel centres lie at half-integers, so the image's centre is at image_size / 2.
        centre = np.full(2, image_size / 2)
        translation = centre + shift - linear @ centre
        affine = np.concatenate([linear, translation[..., None]], axis=2).astype(np.float32)
        return affine, mirrored.astype(np.int32)

    def resize_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if self.kind != "region":
            return {}
        return {"roi_start": given["start"], "roi_end": given["end"], "roi_relative": True}

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn

        if self.kind == "affine":
            return fn.warp_affine(images, matrix=given["affine"], fill_value=None, inverse_map=True)
        if self.kind != "region":
            return images
        # A rectangle that reaches past the border repeats the border's pixels: the image's mirror image instead.
        if given["past_border"]:
            images = _mirror_past(images, given["rows"], axis=0)
            images = _mirror_past(images, given["columns"], axis=1)
        if given["transposed"]:
            images = fn.transpose(images, perm=[1, 0, 2], transpose_layout=False)
        return images

    def normalize_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"mirror": given["mirror"]} if self.kind == "mirror" else {}


def regions_of(affine: npt.NDArray[np.float32], image_size: int) -> Parameters:
    """Affine maps float32 [n, 2, 3] with quarter turns only, as rectangles of the input.

    start, end: float32 [n, 2], corners as fractions of height and width; an end before its start mirrors.
    transposed: bool [n], whether rows then become columns. rows, columns: int32 [n, 3], how many rows (columns) of
    the resized rectangle lie before, in and after the image. past_border: bool [n], whether any lies outside.
    """
    linear, translation = affine[:, :, :2], affine[:, :, 2]
    transposed = np.abs(linear[:, 0, 1]) > np.abs(linear[:, 0, 0])
    # How far the input's x and y go along the output's side that they follow.
    extent = np.where(transposed[:, None], linear[:, [0, 1], [1, 0]], linear[:, [0, 1], [0, 1]])
    start = translation / image_size
    first, last = (corner[:, ::-1].astype(np.float32) for corner in (start, start + extent))  # x, y -> height, width
    inside = np.sort(np.stack([-first, 1 - first]) / (last - first), axis=0).clip(0, 1) * image_size
    third = image_size // 3  # a mirror image is no wider than what it mirrors
    before = np.minimum(np.ceil(inside[0] - _ROUNDING), third)
    until = np.maximum(np.floor(inside[1] + _ROUNDING), image_size - third)
    lines = np.stack([before, until - before, image_size - until], axis=2).astype(np.int32)  # [n, 2, 3]
    outside = np.asarray((lines[:, :, 1] < image_size).any(axis=1))
    return {
        "start": first,
        "end": last,
        "transposed": transposed,
        "rows": lines[:, 0],
        "columns": lines[:, 1],
        "past_border": outside,
    }


def _mirror_past(images: Any, lines: Any, axis: int) -> Any:
    """Images whose rows (axis 0) or columns (1) outside `lines` are the mirror image of those inside."""
    from nvidia.dali import fn

    flipped = fn.flip(images, horizontal=axis, vertical=1 - axis)
    before, inside, after = lines[0], lines[1], lines[2]
    whole = before + inside + after
    parts = [
        fn.slice(flipped, whole - 2 * before, before, axes=[axis]),
        fn.slice(images, before, inside, axes=[axis]),
        fn.slice(flipped, after, after, axes=[axis]),
    ]
    return fn.cat(*parts, axis=axis)
