"""Whether a generator copies: its images' distances to the training images against those of held-out real ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

Floats = NDArray[np.float64]

_FEWEST_IN_TAIL = 5  # held-out images below the quantile, for it to be more than a guess


@dataclass(frozen=True)
class Memorization:
    """Distances to the nearest training image, of generated and of held-out images of one type, compared.

    threshold: the `quantile` of the held-out distances. suspicious: share of the generated images that are nearer;
    of a generator that copies nothing about `quantile`. z: of the Mann-Whitney test, below 0 where generated images
    lie nearer than held-out ones; below -3 they are copies more or less (Meehan et al. 2020, section 4.1).
    A share above `quantile` by itself is no proof: held-out images come from other patients than training images.
    """

    suspicious: float
    threshold: float
    quantile: float
    z: float
    generated: int
    held_out: int
    generated_median: float
    held_out_median: float

    @property
    def too_few(self) -> bool:
        """Whether fewer than five held-out images lie below the threshold."""
        return self.held_out * self.quantile < _FEWEST_IN_TAIL

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("suspicious", "threshold", "quantile", "z", "generated", "held_out", "too_few")
        medians = {"generated": self.generated_median, "held_out": self.held_out_median}
        return {name: getattr(self, name) for name in names} | {"median": medians}


def compare_distances(generated: Floats, held_out: Floats, quantile: float) -> Memorization:
    """Judge distances [n] of generated and [m] of held-out images to their nearest training image.

    ValueError for a quantile outside (0, 1) or an empty side.
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
