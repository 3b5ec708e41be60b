"""Whether a generator copies: its images' distances to the training images against those of held-out real ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

Floats = NDArray[np.float64]

_FEWEST_IN_TAIL = 5  # held-out images below the quantile, for it to be more than a guess


@dataclass(frozen=True)
class Memorization:
    """Distances to the nearest training image, of generated and of held-out images, compared.

    Several types together have no threshold, z and medians: None.
    """

    suspicious: float  # share of generated images nearer than the threshold; without copies about `quantile`
    quantile: float
    generated: int  # images
    held_out: int
    threshold: float | None = None  # the `quantile` of the held-out distances
    # Of the Mann-Whitney test: below 0 where generated images lie nearer than held-out ones; below -3 they are copies
    # more or less (Meehan et al. 2020, section 4.1).
    z: float | None = None
    generated_median: float | None = None  # distance
    held_out_median: float | None = None

    @property
    def too_few(self) -> bool:
        """Whether fewer than five held-out images lie below the threshold."""
        return self.threshold is not None and self.held_out * self.quantile < _FEWEST_IN_TAIL

    @classmethod
    def joined(cls, parts: Sequence["Memorization"]) -> "Memorization | None":
        """Of several types together; None where there is no generated image."""
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
    wins = float(mannwhitneyu(generated, held_out, method="asymptotic").statistic)
    _, ties = np.unique(np.concatenate([generated, held_out]), return_counts=True)
    together = n + m
    level = float((ties.astype(float) ** 3 - ties).sum()) / (together * (together - 1))
    deviation = float(np.sqrt(n * m / 12 * (together + 1 - level)))
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
