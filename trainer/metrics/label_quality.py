"""Which labels are likely wrong, from out-of-fold probabilities, and which images are unlike all others."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]


def likely_label_errors(probabilities: Floats, labels: Labels) -> NDArray[np.bool_]:
    """Confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70, equation 1): whether each label is likely wrong.

    probabilities [n, types]: of each image from a classifier that has not learned from it. An image counts for the
    most probable of the types whose probability is at least the mean probability of that type among images labelled so.
    Its label is likely wrong if that is another type. A type without an image is nobody's.
    """
    types = probabilities.shape[1]
    counts = np.bincount(labels, minlength=types)
    thresholds = np.bincount(labels, label_confidences(probabilities, labels), minlength=types) / np.maximum(counts, 1)
    confident = (probabilities >= np.where(counts > 0, thresholds, np.inf)).astype(bool)
    meant = np.where(confident, probabilities, -1.0).argmax(axis=1)
    return confident.any(axis=1) & (meant != labels)


def label_confidences(probabilities: Floats, labels: Labels) -> Floats:
    """Out-of-fold probability of each label, [n] in [0, 1]; the lowest is the most suspect ("self-confidence")."""
    return probabilities[np.arange(len(labels)), labels]


def neighbour_distances(features: Floats, neighbours: int = 10) -> Floats:
    """Distance of each image to its k-th nearest other image, [n] in [0, 2]: far ones are unusual.

    features [n, d], scaled to unit length (Sun et al. 2022, "Out-of-distribution detection with deep nearest
    neighbors"). With few images the furthest is taken.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(features) < 2:
        return np.zeros(len(features), np.float32)
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    k = min(neighbours, len(units) - 1)
    return NearestNeighbors(n_neighbors=k).fit(units).kneighbors()[0][:, -1]  # without the image itself
