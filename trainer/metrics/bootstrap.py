"""Resampling of a classifier's scores over groups (patients, slides) instead of images.

Images of one group resemble each other, so resampling single images gives intervals that are too narrow.
A resample draws as many groups as there are, with replacement; every image then weighs as often as its
group was drawn, and each score is computed from those weights, for all resamples at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Estimate = dict[str, float | None]  # "value", "low", "high"

# Resamples worked on together: few enough that their weights stay in the processor's cache.
RESAMPLES_AT_ONCE = 32


@dataclass(frozen=True)
class ScoredImages:
    """What the resampled scores are computed from.

    probabilities float64 [n, C]; labels, predicted and group int64 [n], group counting 0..number_of_groups-1;
    calibration_bin int64 [n], the bin of the prediction's confidence.
    """

    probabilities: Floats
    labels: Integers
    predicted: Integers
    group: Integers
    number_of_groups: int
    calibration_bin: Integers
    number_of_bins: int


def measures_of_confusion(confusion: NDArray[np.generic]) -> dict[str, Floats]:
    """Accuracy and the one-vs-rest measures of each type from confusion counts.

    confusion [..., C, C], rows true. Returns "accuracy" [...] and, each [..., C] and NaN where no image has
    the type: "sensitivity", "specificity", "precision", "f1", "type_accuracy". A type that is never predicted
    has precision 0 (as in torchmetrics and scikit-learn); specificity is NaN where no other type is there.
    """
    counts = confusion.astype(np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    has_type = counts.sum(axis=-1)
    said_type = counts.sum(axis=-2)
    total = counts.sum(axis=(-2, -1))[..., None]
    rest = total - has_type
    absent = has_type == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        measures = {
            "sensitivity": right / has_type,
            "specificity": (rest - (said_type - right)) / rest,
            "precision": np.where(said_type > 0, right / said_type, 0.0),
            "f1": 2 * right / (has_type + said_type),
            "type_accuracy": (total - has_type - said_type + 2 * right) / total,
        }
        accuracy = right.sum(axis=-1) / total[..., 0]
    return {"accuracy": accuracy} | {name: np.where(absent, np.nan, value) for name, value in measures.items()}


def resampled_measures(images: ScoredImages, resamples: int, seed: int) -> dict[str, Floats]:
    """The measures of `measures_of_confusion` and of `resampled_trust`, and "auroc" [B, C], of B resamples."""
    types = images.probabilities.shape[1]
    confusions = np.zeros((images.number_of_groups, types * types))
    np.add.at(confusions, (images.group, images.labels * types + images.predicted), 1.0)
    rankings = [_ranking(images, kind) for kind in range(types)]

    parts: list[dict[str, Floats]] = []
    for weights in group_weights(images.number_of_groups, resamples, seed):
        part = measures_of_confusion((weights.T @ confusions).reshape(-1, types, types))
        part["auroc"] = np.stack([_weighted_auroc(ranking, weights) for ranking in rankings], axis=1)
        parts.append(part)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return joined | resampled_trust(images, resamples, seed)


def resampled_trust(images: ScoredImages, resamples: int, seed: int) -> dict[str, Floats]:
    """ "calibration_error" and "negative_log_likelihood" [B] of B resamples, the same as `resampled_measures` draws."""
    confidence = images.probabilities[np.arange(len(images.labels)), images.predicted]
    overconfidence = np.zeros((images.number_of_groups, images.number_of_bins))
    np.add.at(overconfidence, (images.group, images.calibration_bin), confidence - (images.labels == images.predicted))
    losses = np.bincount(images.group, negative_log_likelihood(images), images.number_of_groups)
    images_of_group = np.bincount(images.group, minlength=images.number_of_groups).astype(np.float64)
    errors, means = [], []
    for weights in group_weights(images.number_of_groups, resamples, seed):
        drawn = weights.T @ images_of_group
        errors.append(np.abs(weights.T @ overconfidence).sum(axis=1) / drawn)
        means.append(weights.T @ losses / drawn)
    return {"calibration_error": np.concatenate(errors), "negative_log_likelihood": np.concatenate(means)}


def negative_log_likelihood(images: ScoredImages) -> Floats:
    """-log p(true type) of each image [n]; a probability below 1e-12 counts as that, so that one image stays one."""
    return -np.log(np.maximum(images.probabilities[np.arange(len(images.labels)), images.labels], 1e-12))


def group_weights(number_of_groups: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield [G, b] draws of each group for b resamples at a time, `resamples` in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        width = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = generator.integers(number_of_groups, size=(width, number_of_groups))
        cell = drawn + np.arange(width)[:, None] * number_of_groups
        counts = np.bincount(cell.ravel(), minlength=width * number_of_groups)
        # One row per group, so that looking up an image's weights copies one contiguous row.
        yield np.ascontiguousarray(counts.reshape(width, number_of_groups).T, dtype=np.float64)


@dataclass(frozen=True)
class _Ranking:
    """One type's images against the rest, ordered by the type's probability."""

    type_groups: Integers  # group of each image of the type
    rest_groups: Integers  # group of each other image, by rising probability
    below: Integers  # for each image of the type: how many others lie strictly below it
    not_above: Integers  # ... and how many lie below it or level with it


def _ranking(images: ScoredImages, kind: int) -> _Ranking:
    is_type = images.labels == kind
    of_type, of_rest = images.probabilities[is_type, kind], images.probabilities[~is_type, kind]
    order = np.argsort(of_rest, kind="stable")
    ordered = of_rest[order]
    return _Ranking(
        type_groups=images.group[is_type],
        rest_groups=images.group[~is_type][order],
        below=np.searchsorted(ordered, of_type, side="left"),
        not_above=np.searchsorted(ordered, of_type, side="right"),
    )


def _weighted_auroc(ranking: _Ranking, weights: Floats) -> Floats:
    """Area under the curve for each column of weights [G, b]: P(type above rest), level pairs half."""
    type_weights = weights[ranking.type_groups]
    lighter = np.zeros((len(ranking.rest_groups) + 1, weights.shape[1]))
    np.cumsum(weights[ranking.rest_groups], axis=0, out=lighter[1:])
    won = 0.5 * np.einsum("ib,ib->b", type_weights, lighter[ranking.below] + lighter[ranking.not_above])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(won / (type_weights.sum(axis=0) * lighter[-1]), dtype=np.float64)


def all_right_lower_bound(groups: NDArray[np.generic], confidence: float = 0.975) -> float:
    """Lower bound of the mean sensitivity when every image of every type was right.

    A bootstrap of only right answers answers [1, 1] however few they are. The exact (Clopper-Pearson) bound
    is the lowest mean of p_t with prod p_t^groups_t >= 1 - confidence, where groups_t is the number of groups
    of type t; for one type it is (1 - confidence)^(1/groups). By Lagrange, p_t = min(1, level * groups_t).
    """
    counts = np.asarray(groups, dtype=np.float64)
    budget = -np.log(1 - confidence)
    low, high = 0.0, 1.0 / counts.min()
    for _ in range(100):
        level = (low + high) / 2
        spent = np.sum(counts * np.maximum(0.0, -np.log(level * counts)))
        low, high = (level, high) if spent > budget else (low, level)
    return float(np.minimum(1.0, high * counts).mean())


def interval(value: float, draws: Floats, trials: Floats | None) -> Estimate:
    """Percentiles of the draws; for a proportion of 0 or 1 in all of them, the exact bound for `trials`."""
    draws = draws[~np.isnan(draws)]
    if draws.size and np.ptp(draws) > 1e-12:
        low, high = np.percentile(draws, [2.5, 97.5])
        return {"value": value, "low": float(low), "high": float(high)}
    if trials is not None and value in (0.0, 1.0):
        bound = all_right_lower_bound(trials)
        return {"value": value, "low": bound, "high": 1.0} if value else {"value": value, "low": 0.0, "high": 1 - bound}
    return {"value": value, "low": None, "high": None}
