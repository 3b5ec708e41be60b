"""sRGB to CIELAB (white D65, observer of 2 degrees) and back, on batches of images."""

from functools import cache

import torch
from torch import Tensor

# Linear sRGB to XYZ relative to the white point (IEC 61966-2-1); rows X, Y, Z.
_WHITE = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
_XYZ_OF_RGB = (
    torch.tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
        dtype=torch.float64,
    )
    / _WHITE[:, None]
)
# L*, a*, b* are linear in the compressed X, Y, Z: L* = 116 y - 16, a* = 500 (x - y), b* = 200 (y - z).
_LAB_OF_COMPRESSED = torch.tensor([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]], dtype=torch.float64)
# Inverted here: exporters cannot invert a matrix.
_RGB_OF_XYZ, _COMPRESSED_OF_LAB = torch.linalg.inv(_XYZ_OF_RGB), torch.linalg.inv(_LAB_OF_COMPRESSED)
_LIGHTNESS_OFFSET = 16.0
_OFFSET = torch.tensor([_LIGHTNESS_OFFSET, 0.0, 0.0], dtype=torch.float64).view(3, 1, 1)
_DELTA = 6 / 29  # least cube root; a line replaces it below (CIE 15:2004, section 8.2.1)


def rgb_to_lab(images: Tensor) -> Tensor:
    """Images float [n, 3, H, W] in [-1, 1] -> L* in [0, 100], a* and b* about [-100, 100], same shape."""
    encoded = (images.clamp(-1, 1) + 1) / 2
    linear = torch.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    xyz = _mix(_XYZ_OF_RGB, linear)
    compressed = torch.where(xyz > _DELTA**3, xyz.clamp_min(_DELTA**3) ** (1 / 3), xyz / (3 * _DELTA**2) + 4 / 29)
    lab = _mix(_LAB_OF_COMPRESSED, compressed)
    lab[:, 0] -= _LIGHTNESS_OFFSET
    return lab


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of rgb_to_lab; colours outside sRGB are clipped to [-1, 1] in each channel."""
    compressed = _mix(_COMPRESSED_OF_LAB, lab + _beside(lab, _OFFSET))
    xyz = torch.where(compressed > _DELTA, compressed**3, 3 * _DELTA**2 * (compressed - 4 / 29))
    linear = _mix(_RGB_OF_XYZ, xyz).clamp(0, 1)
    # The root has an infinite derivative at zero, which torch.where would turn into NaN.
    root = linear.clamp_min(0.0031308) ** (1 / 2.4)
    encoded = torch.where(linear > 0.0031308, 1.055 * root - 0.055, 12.92 * linear)
    return (encoded * 2 - 1).clamp(-1, 1)


def _mix(matrix: Tensor, images: Tensor) -> Tensor:
    """matrix [3, 3] applied to the channels of images [n, 3, H, W]."""
    return torch.einsum("ij,njhw->nihw", _beside(images, matrix), images)


def _beside(images: Tensor, constant: Tensor) -> Tensor:
    """A constant of this module on the images' device, in their dtype."""
    if images.is_cuda and not torch.compiler.is_compiling():
        return _on_gpu(constant, images.device, images.dtype)
    return constant.to(images)


@cache
def _on_gpu(constant: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cached per GPU: each copy would wait for the GPU's queue."""
    return constant.to(device, dtype)
