"""Whether generated images are copies of training images, mirrors and quarter turns counting as the same image.

A generated cell has no true image to be compared with: table 20's distances are to the nearest real one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, tiecorrect
from torch import Tensor
from torch.nn import functional

from trainer.metrics.generation import distances
from trainer.metrics.image_distance import psnr, ssim

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TURNS = 8  # four quarter turns, each plain and mirrored
_THUMBNAIL = 32  # pixels
_FEWEST_IN_TAIL = 5  # held-out images below the quantile, for it to be more than a guess


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
    """Images float32 [n, 3, S, S] in [-1, 1] at 32 px, float64, scaled to root mean square distances.

    The Euclidean distance of two, flattened, is the root mean square difference of the images at that size, as a
    share of the full range. Thumbnails of sharp and of blurred images are equally smooth; at full size a blurred image
    is nearer to all images and would look like a copy. A turned thumbnail equals the thumbnail of the turned image.
    """
    small = functional.adaptive_avg_pool2d(images.double(), min(_THUMBNAIL, images.shape[-1]))
    return small / 2 / small[0].numel() ** 0.5


def nearest(points: Floats, references: Iterable[Floats]) -> Nearest:
    """The nearest reference of each point [n, d]. references: [m, d] of the same m images, once for each turn."""
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
    """The nearest reference images [n, 3, S, S], turned as they were found; images: all references [m, 3, S, S]."""
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


@dataclass(frozen=True)
class Memorization:
    """Distances to the nearest training image, of generated and of held-out images, compared.

    Several types together have no threshold, z and medians: None.
    """

    suspicious: float  # share of generated images nearer than the threshold; without copies about `quantile`
    quantile: float
    generated: int  # number of generated images
    held_out: int
    threshold: float | None = None  # the `quantile` of the held-out distances
    # z of the Mann-Whitney test. Below 0: generated images are nearer to training images than held-out ones. Below -3:
    # clear copying (Meehan et al. 2020, section 4.1).
    z: float | None = None
    generated_median: float | None = None  # distance
    held_out_median: float | None = None

    @property
    def too_few(self) -> bool:
        """Whether fewer than five held-out images lie below the threshold."""
        return self.threshold is not None and self.held_out * self.quantile < _FEWEST_IN_TAIL

    @classmethod
    def joined(cls, parts: Sequence["Memorization"]) -> "Memorization | None":
        """The comparison of several types together; None where there is no generated image."""
        generated = sum(each.generated for each in parts)
        if not generated:
            return None
        near = sum(round(each.suspicious * each.generated) for each in parts)
        return cls(near / generated, parts[0].quantile, generated, sum(each.held_out for each in parts))


def compare_distances(generated: Floats, held_out: Floats, quantile: float) -> Memorization:
    """Judge distances [n] of generated and [m] of held-out images of one type to their nearest training image.

    A share of suspicious images above `quantile` alone is no proof: held-out images come from other patients than
    training images. ValueError for a quantile outside (0, 1) or an empty side.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile={quantile}: must lie between 0 and 1")
    n, m = len(generated), len(held_out)
    if not n or not m:
        raise ValueError(f"distances of {n} generated and {m} held-out images: needs one of each at least")
    threshold = float(np.quantile(held_out, quantile))
    ranks = rankdata(np.concatenate([generated, held_out]))
    wins = float(ranks[:n].sum()) - n * (n + 1) / 2
    deviation = float(np.sqrt(n * m / 12 * (n + m + 1) * tiecorrect(ranks)))
    return Memorization(
        suspicious=float((generated < threshold).mean()),
        threshold=threshold,
        quantile=quantile,
        z=(wins - n * m / 2) / deviation if deviation > 0 else 0.0,
        generated=n,
        held_out=m,
        generated_median=float(np.median(generated)),
        held_out_median=float(np.median(held_out)),
    )
