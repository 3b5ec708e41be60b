"""Split conformal prediction: sets of types that hold the true one with a chosen probability.

Least ambiguous sets (Sadinle, Lei and Wasserman 2019): every type whose probability reaches one threshold, which is
a quantile of the probabilities that validation images have of their true types. The share of sets that hold the true
type is then the coverage, up to the chance of the draw, for images that come from where the validation images come
from. Where a classifier is right more often than the coverage asks, some sets are empty.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Share of validation images that are within the limit of what counts as familiar.
FAMILIAR = 0.99


def conformal_quantile(scores: Floats, coverage: float) -> float:
    """The ceil((n + 1) * coverage)-th smallest of n scores: a new one is at most this with probability `coverage`.

    Infinite where there are too few scores for the coverage.
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def least_probability(probabilities: Floats, labels: NDArray[np.int64], coverage: float) -> float:
    """The threshold that a type's probability must reach to be in the set; 0 where there are too few images.

    probabilities [n, C] and labels [n] of validation images.
    """
    return max(0.0, -conformal_quantile(-probabilities[np.arange(len(labels)), labels], coverage))


def prediction_sets(probabilities: Floats, least: float) -> NDArray[np.bool_]:
    """Which types are in the set of each image: bool [n, C]."""
    return np.asarray(probabilities >= least)


def scale_to_limit(scores: Floats, share: float) -> tuple[float, float]:
    """Weight and offset that bring the median of the scores to 0 and their conformal quantile at `share` to 1.

    Of too few scores for a quantile, the largest is brought to 1.
    """
    middle, limit = float(np.median(scores)), min(conformal_quantile(scores, share), float(scores.max()))
    weight = 1 / max(limit - middle, 1e-12)
    return weight, -weight * middle
