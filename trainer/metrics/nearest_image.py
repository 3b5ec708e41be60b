"""The real image nearest to a generated one, mirrors and quarter turns counting as the same image.

A generated cell has no true image to be compared with; what table 20's distances can be taken to is the nearest
real one, and what a generator that copies would show by.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainer.metrics.image_distance import psnr, ssim
from trainer.metrics.manifold import distances

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TURNS = 8  # four quarter turns, each plain and mirrored
_THUMBNAIL = 32


@dataclass(frozen=True)
class Nearest:
    """For each of n images: distance float64 [n]; row int64 [n] of the nearest one; turn int64 [n] it was seen in."""

    distance: Floats
    row: Integers
    turn: Integers


def turned(images: Tensor, turn: int) -> Tensor:
    """Images [n, C, S, S] turned by `turn` mod 4 quarters, mirrored first from 4 on."""
    return torch.rot90(images.flip(3) if turn >= TURNS // 2 else images, turn % 4, (2, 3))


def thumbnails(images: Tensor) -> Tensor:
    """Images float32 [n, 3, S, S] in [-1, 1] at 32 px, float64, scaled so that distances are of intensity.

    The Euclidean distance of two, flattened, is the root mean square difference of the images at that size, as a
    share of the full range. There sharp images and blurred ones are equally smooth: at their own size a blurred
    image is nearer to everything, and would pass for a copy. Turning a thumbnail is as good as turning the image.
    """
    small = functional.adaptive_avg_pool2d(images.double(), min(_THUMBNAIL, images.shape[-1]))
    return small / 2 / small[0].numel() ** 0.5


def nearest(points: Floats, references: Iterable[Floats]) -> Nearest:
    """The nearest reference of each point [n, d]; references: of the same m images, [m, d] for each of their turns."""
    best = np.full(len(points), np.inf)
    row, turn = np.zeros(len(points), dtype=np.int64), np.zeros(len(points), dtype=np.int64)
    for number, reference in enumerate(references):
        between = distances(points, reference)
        closest = between.argmin(axis=1)
        found = between[np.arange(len(points)), closest]
        nearer = found < best
        best[nearer], row[nearer], turn[nearer] = found[nearer], closest[nearer], number
    return Nearest(best, row, turn)


def nearest_images(images: Tensor, found: Nearest) -> Tensor:
    """The nearest ones themselves, from the references `images` [m, 3, S, S], as they were turned: [n, 3, S, S]."""
    chosen = images[torch.from_numpy(found.row)]
    together = [turned(chosen[number : number + 1], int(turn)) for number, turn in enumerate(found.turn)]
    return torch.cat(together) if together else chosen


def distances_to_nearest(images: Tensor, closest: Tensor) -> dict[str, Floats]:
    """PSNR (dB), SSIM, L1 and L2 of each image to its nearest, both float32 [n, 3, S, S] in [-1, 1]: float64 [n] each.

    L1 and L2 are the mean absolute and the root mean square difference, as shares of the full range, so that
    PSNR = -20 log10 L2 (infinite for equal images).
    """
    difference = (images.double() - closest.double()).flatten(1) / 2
    values = {
        "psnr": psnr(images, closest),
        "ssim": ssim(images, closest),
        "l1": difference.abs().mean(1),
        "l2": difference.square().mean(1).sqrt(),
    }
    return {name: value.double().cpu().numpy() for name, value in values.items()}
