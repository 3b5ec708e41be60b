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
