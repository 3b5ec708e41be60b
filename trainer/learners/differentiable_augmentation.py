"""DiffAugment: changes to real and generated images alike, through which gradients pass (Zhao et al. 2020)."""

from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from data_pipeline.device import to_device

Change = Literal["colour", "translation", "cutout"]
CHANGES: tuple[Change, ...] = get_args(Change)

# Uniform numbers in [0, 1) that one image's changes follow from.
NUMBERS = 7
_LARGEST_SHIFT = 1 / 8  # of the image's side
_CUTOUT = 1 / 2  # side of the square that is cut out, of the image's


def augment(images: torch.Tensor, numbers: npt.NDArray[np.float64], changes: Collection[Change]) -> torch.Tensor:
    """Images float32 [n, 3, S, S] changed, each by its own row of `numbers` [n, NUMBERS] in [0, 1).

    colour: brightness, saturation and contrast; translation: by up to an eighth of the side, zeros come in;
    cutout: a square of half the side turns to zero, the middle of the range [-1, 1].
    """
    if "colour" in changes:
        images = _change_colour(images, numbers[:, :3])
    if "translation" in changes:
        images = _translate(images, numbers[:, 3:5])
    if "cutout" in changes:
        images = _cut_out(images, numbers[:, 5:7])
    return images


def _change_colour(images: torch.Tensor, numbers: npt.NDArray[np.float64]) -> torch.Tensor:
    """Brightness shifted by -1/2 to 1/2, saturation times 0 to 2, contrast times 1/2 to 3/2."""
    amounts = to_device(numbers, images.device).to(images.dtype).view(-1, 3, 1, 1, 1)
    images = images + (amounts[:, 0] - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * amounts[:, 1]) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (amounts[:, 2] + 0.5) + mean


def _translate(images: torch.Tensor, numbers: npt.NDArray[np.float64]) -> torch.Tensor:
    most = int(images.shape[-1] * _LARGEST_SHIFT + 0.5)
    shifts = np.floor(numbers * (2 * most + 1)).astype(int) - most
    # Padding by a negative number crops.
    return torch.stack(
        [functional.pad(image, (x, -x, y, -y)) for image, (x, y) in zip(images, shifts.tolist(), strict=True)]
    )


def _cut_out(images: torch.Tensor, numbers: npt.NDArray[np.float64]) -> torch.Tensor:
    side = images.shape[-1]
    half = int(side * _CUTOUT + 0.5) // 2
    centres = np.floor(numbers * (side + 1)).astype(int)
    kept = np.ones((len(images), 1, side, side), np.float32)
    for mask, (x, y) in zip(kept, centres.tolist(), strict=True):
        mask[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
    return images * to_device(kept, images.device).to(images.dtype)
