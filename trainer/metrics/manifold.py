"""Fidelity and diversity apart: precision, recall, density and coverage of generated images in a feature space."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ROUNDING = 1 + 1e-6  # a point on the very edge of a ball, such as the k-th neighbour itself, is inside


@dataclass(frozen=True)
class ManifoldScores:
    """How two sets of features lie in each other; the manifold of a set: balls to each point's k-th neighbour.

    precision: share of generated images in the real manifold. recall: share of real images in the generated one
    (Kynkäänniemi et al. 2019, equations 1-3). density: mean number of real balls that hold a generated image, over
    k; may exceed 1. coverage: share of real balls that hold a generated image (Naeem et al. 2020, equations 3-4).
    """

    precision: float
    recall: float
    density: float
    coverage: float
    neighbours: int


def compare_manifolds(real: Floats, generated: Floats, neighbours: int) -> ManifoldScores:
    """Scores of features [n, d] and [m, d] with k = neighbours. ValueError unless both sets have more than k."""
    if not 1 <= neighbours < min(len(real), len(generated)):
        raise ValueError(
            f"neighbours={neighbours}: needs more images than that: got {len(real)} real, {len(generated)} generated"
        )
    within_real = distances(generated, real) <= _radius(real, neighbours)  # [m, n]
    within_generated = distances(real, generated) <= _radius(generated, neighbours)  # [n, m]
    return ManifoldScores(
        precision=float(within_real.any(axis=1).mean()),
        recall=float(within_generated.any(axis=1).mean()),
        density=float(within_real.sum(axis=1).mean() / neighbours),
        coverage=float(within_real.any(axis=0).mean()),
        neighbours=neighbours,
    )


def distances(points: Floats, others: Floats) -> Floats:
    """Euclidean distances of two sets [n, d] and [m, d]: float64 [n, m]."""
    fast = "use_mm_for_euclid_dist"  # equal points lie up to 1e-8 of their length apart
    found: Floats = torch.cdist(torch.from_numpy(points), torch.from_numpy(others), compute_mode=fast).numpy()
    return found


def _radius(points: Floats, neighbours: int) -> Floats:
    """Distance of each point to its k-th neighbour, itself not counted: float64 [n]."""
    between = distances(points, points)
    np.fill_diagonal(between, np.inf)
    radius: Floats = np.partition(between, neighbours - 1, axis=1)[:, neighbours - 1]
    return radius * _ROUNDING
