"""Pixel values of more than 8 bits, scaled to 8 bits by the range in which they were recorded."""

from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UnreadableImage

EIGHT_BITS = 8
# Of cameras' converters. Files keep values of 10 to 14 bits in 16 bits, mostly without saying so.
_DEPTHS = (EIGHT_BITS, 10, 12, 14, 16)
# A slide's background is bright: if the brightest value is below this share of the range, the range is wrong.
_LEAST_BRIGHTEST = 0.25


def to_eight_bits(values: npt.NDArray[Any], declared: int | None = None) -> tuple[npt.NDArray[np.uint8], int]:
    """Pixel values [H, W] or [H, W, C] of any number type as uint8 [H, W] or [H, W, 3], and the bits of their range.

    declared: significant bits that the file states. Otherwise integers have the smallest range of 8, 10, 12, 14 or 16
    bits that holds the brightest, floating-point values 0 to 1 or 0 to 255. Scaling by a range, not by the picture's
    maximum, treats pictures of one camera alike: a darker exposure stays darker. UnreadableImage for an unknown range.
    """
    values = values[..., :3] if values.ndim == 3 and values.shape[2] >= 3 else values
    values = values[..., 0] if values.ndim == 3 and values.shape[2] < 3 else values
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255), EIGHT_BITS
    if values.dtype.kind == "f":
        return _from_float(values), EIGHT_BITS
    if values.dtype.kind not in "ui":
        raise UnreadableImage(f"pixel values of type {values.dtype}")
    if values.dtype == np.uint8:
        return values, EIGHT_BITS
    return _from_integer(values, declared)


def _from_integer(values: npt.NDArray[Any], declared: int | None) -> tuple[npt.NDArray[np.uint8], int]:
    darkest, brightest = int(values.min()), int(values.max())
    if darkest < 0:
        raise UnreadableImage(f"pixel values from {darkest} to {brightest}: negative ones are no brightness")
    positive_bits = 8 * values.dtype.itemsize - (values.dtype.kind == "i")
    if declared is not None and brightest < 2**declared and declared <= _DEPTHS[-1]:
        bits = declared
    else:
        holding = [depth for depth in _DEPTHS if brightest < 2**depth]
        if not holding:
            raise UnreadableImage(f"pixel values up to {brightest}: more than {_DEPTHS[-1]} bits, of unknown range")
        bits = min(holding[0], positive_bits)
        if brightest < _LEAST_BRIGHTEST * (2**bits - 1):
            raise UnreadableImage(
                f"pixel values up to {brightest} in {8 * values.dtype.itemsize} bits: their range is unknown"
            )
    top = 2**bits - 1
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8), bits


def _from_float(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    darkest, brightest = float(values.min()), float(values.max())  # either is NaN where any value is
    slack = 1e-3  # of rounding
    for top in (1.0, 255.0):
        if -slack * top <= darkest and _LEAST_BRIGHTEST * top <= brightest <= (1 + slack) * top:
            return (values.astype(np.float64) * (255 / top)).round().clip(0, 255).astype(np.uint8)
    raise UnreadableImage(
        f"floating-point pixel values from {darkest:.6g} to {brightest:.6g}: neither 0 to 1 nor 0 to 255"
    )
