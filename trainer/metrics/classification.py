"""Scores of a cell-type classifier, overall and per type, with intervals over groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional import classification as torchmetrics

from trainer.metrics.bootstrap import (
    Estimate,
    Floats,
    ScoredImages,
    interval,
    negative_log_likelihood,
    resampled_measures,
    resampled_trust,
)
from trainer.metrics.selective import selective_scores

CALIBRATION_BINS = 15
INTERVAL_METHOD = (
    "95 % percentile bootstrap over groups; where every answer was right (or none), "
    "the exact binomial bound with one trial per group; none where resamples do not differ"
)
# Macro measures: the mean over the types that are present in the labels.
MACRO = ("sensitivity", "specificity", "precision", "f1", "auroc")
PER_TYPE = ("sensitivity", "specificity", "precision", "f1", "auroc", "accuracy")
OVERALL = ("accuracy", "balanced_accuracy", *MACRO, "calibration_error")
TRUST = ("calibration_error", "negative_log_likelihood")


def score(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    groups: Sequence[str],
    cell_types: Sequence[str],
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score predictions; the result holds only what JSON can hold.

    probabilities [n, C], each row summing to 1; labels int [n], indices into cell_types; groups [n], ''
    being a group of its own. Every measure is {"value", "low", "high"}, of 1. Sensitivity is recall;
    balanced accuracy is by definition the mean sensitivity. A type without an image in the labels ("absent")
    has null values and is left out of the means, though predictions of it still count as wrong. A type's
    "accuracy" is one-vs-rest: (TP + TN) / n, as in figures 53 and 54. An interval is null where it cannot be
    had: one group only, or no variation in the resamples. "reliability" holds the calibration error's bins;
    "negative_log_likelihood" is a mean over images, in nats; "selective": see `selective_scores`.
    Raises ValueError when the arrays disagree, are empty, or are no probabilities.
    """
    images = _scored_images(probabilities, labels, groups, len(cell_types))
    point = _point_measures(images)
    present = ~np.isnan(point["sensitivity"])
    resampled: dict[str, Floats] = {}
    if bootstrap_samples > 0 and images.number_of_groups > 1:
        resampled = resampled_measures(images, bootstrap_samples, seed)
    counted = _groups_behind(images)

    overall = {name: _estimate(point, resampled, name, counted["accuracy"]) for name in ("accuracy", *TRUST)}
    for name in MACRO:
        overall[name] = _macro_estimate(point, resampled, name, counted["sensitivity"][present])
    overall["balanced_accuracy"] = dict(overall["sensitivity"])
    per_type: dict[str, Any] = {}
    for index, cell_type in enumerate(cell_types):
        per_type[cell_type] = {
            "count": int((images.labels == index).sum()),
            "groups": int(counted["sensitivity"][index]),
        } | {
            name: _estimate(point, resampled, "type_accuracy" if name == "accuracy" else name, counted[name], index)
            for name in PER_TYPE
        }
    return {
        "count": len(images.labels),
        "groups": images.number_of_groups,
        "interval": {"method": INTERVAL_METHOD, "resamples": bootstrap_samples, "seed": seed},
        "absent": [cell_type for cell_type, there in zip(cell_types, present, strict=True) if not there],
        **{name: overall[name] for name in (*OVERALL, "negative_log_likelihood")},
        "per_type": per_type,
        "confusion": point["confusion"].astype(int).tolist(),
        "reliability": _reliability(images),
        "selective": selective_scores(images, bootstrap_samples, seed),
    }


def trust(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    groups: Sequence[str],
    cell_types: Sequence[str],
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Of what `score` returns: "calibration_error", "negative_log_likelihood" and "reliability" alone."""
    images = _scored_images(probabilities, labels, groups, len(cell_types))
    point, resampled = _point_trust(images), {}
    if bootstrap_samples > 0 and images.number_of_groups > 1:
        resampled = resampled_trust(images, bootstrap_samples, seed)
    behind = np.array([images.number_of_groups], dtype=np.float64)
    return {name: _estimate(point, resampled, name, behind) for name in TRUST} | {"reliability": _reliability(images)}


def format_scores(scores: Mapping[str, Any]) -> str:
    """The scores as a table for the console, in per cent, ending without a newline."""
    lines = [f"{scores['count']} images in {scores['groups']} groups; 95 % intervals over groups"]
    lines += [f"{name.replace('_', ' '):<22}{format_estimate(scores[name], brackets=True)}" for name in OVERALL]
    width = max(len(cell_type) for cell_type in scores["per_type"]) + 2
    heads = ("sensitivity", "specificity", "precision", "f1")
    lines += [f"{'log likelihood, neg.':<22}{format_nats(scores['negative_log_likelihood'])}"]
    selective = scores["selective"]
    lines += [f"{'error over coverage':<22}{format_estimate(selective['risk_coverage_area'], brackets=True)}"]
    for share, estimate in selective["accuracy_at_coverage"].items():
        lines.append(f"{f'accuracy, surest {share} %':<22}{format_estimate(estimate, brackets=True)}")
    lines += ["", f"{'':<{width}}{'images':>7}" + "".join(f"{name:>20}" for name in heads)]
    for cell_type, row in scores["per_type"].items():
        cells = "".join(f"{format_estimate(row[name], brackets=True):>20}" for name in heads)
        lines.append(f"{cell_type:<{width}}{row['count']:>7}{cells}".rstrip())
    if scores["absent"]:
        lines.append(f"not in the labels, left out of the means: {', '.join(scores['absent'])}")
    return "\n".join(lines)


def format_estimate(estimate: Mapping[str, float | None], brackets: bool = False) -> str:
    """'97.3', with brackets '97.3 [95.1, 98.8]', in per cent; '-' where there is no value."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return "-"
    if not brackets or low is None or high is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def format_nats(estimate: Mapping[str, float | None]) -> str:
    """'0.142 [0.101, 0.187]': a negative log likelihood with its interval; '-' where there is no value."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _scored_images(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    groups: Sequence[str],
    types: int,
) -> ScoredImages:
    """Check the arrays and turn group names into numbers."""
    table = np.array(probabilities, dtype=np.float64)
    truth = np.array(labels, dtype=np.int64)  # copies: torch wants them writable
    if table.ndim != 2 or table.shape[1] != types or truth.shape != table.shape[:1] or len(groups) != len(truth):
        raise ValueError(
            f"scores need one label, one group and {types} probabilities per image: "
            f"got probabilities {table.shape}, labels {truth.shape}, {len(groups)} groups"
        )
    if len(truth) == 0:
        raise ValueError("no image to score")
    if not np.isfinite(table).all() or table.min() < 0 or np.abs(table.sum(axis=1) - 1).max() > 0.02:
        raise ValueError("probabilities must be finite, not negative, and sum to 1 in each row")
    if truth.min() < 0 or truth.max() >= types:
        raise ValueError(f"labels must lie in 0..{types - 1}: got {truth.min()}..{truth.max()}")
    numbers: dict[str | int, int] = {}
    group = [numbers.setdefault(name or position, len(numbers)) for position, name in enumerate(groups)]
    predicted = table.argmax(axis=1)
    # A confidence of exactly 1 belongs to the last bin; torchmetrics would open a sixteenth for it.
    bins = np.minimum((table.max(axis=1) * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return ScoredImages(table, truth, predicted, np.array(group, dtype=np.int64), len(numbers), bins, CALIBRATION_BINS)


def _point_measures(images: ScoredImages) -> dict[str, Floats]:
    """The scores of the images as they are, by torchmetrics; per type [C], NaN for absent types."""
    types = images.probabilities.shape[1]
    probabilities = torch.from_numpy(images.probabilities)
    predicted, labels = torch.from_numpy(images.predicted), torch.from_numpy(images.labels)
    is_absent = np.bincount(images.labels, minlength=types) == 0
    only_type = np.equal(np.bincount(images.labels, minlength=types), len(images.labels))
    confusion = torchmetrics.multiclass_confusion_matrix(predicted, labels, types).numpy().astype(np.float64)

    def per_type(measure: Any) -> Floats:
        values = measure(predicted, labels, num_classes=types, average="none").double().numpy()
        return np.where(is_absent, np.nan, values)

    auroc = np.full(types, np.nan)
    type_accuracy = np.full(types, np.nan)
    for kind in np.flatnonzero(~is_absent):
        is_type, said_type = torch.eq(labels, int(kind)).int(), torch.eq(predicted, int(kind)).int()
        type_accuracy[kind] = torchmetrics.binary_accuracy(said_type, is_type).item()
        if not only_type[kind]:
            auroc[kind] = torchmetrics.binary_auroc(probabilities[:, kind], is_type).item()
    accuracy = torchmetrics.multiclass_accuracy(predicted, labels, types, average="micro")
    return _point_trust(images) | {
        "accuracy": np.array(accuracy.item()),
        "sensitivity": per_type(torchmetrics.multiclass_recall),
        "specificity": np.where(only_type, np.nan, per_type(torchmetrics.multiclass_specificity)),
        "precision": per_type(torchmetrics.multiclass_precision),
        "f1": per_type(torchmetrics.multiclass_f1_score),
        "auroc": auroc,
        "type_accuracy": type_accuracy,
        "confusion": confusion,
    }


def _point_trust(images: ScoredImages) -> dict[str, Floats]:
    """The calibration error and the mean negative log likelihood of the images as they are."""
    error = torchmetrics.multiclass_calibration_error(
        torch.from_numpy(images.probabilities).clamp(max=1 - 1e-9),
        torch.from_numpy(images.labels),
        images.probabilities.shape[1],
        n_bins=CALIBRATION_BINS,
        norm="l1",
    )
    return {
        "calibration_error": np.array(error.item()),
        "negative_log_likelihood": np.array(negative_log_likelihood(images).mean()),
    }


def _groups_behind(images: ScoredImages) -> dict[str, Floats]:
    """How many groups each measure of a type rests on, [C]: an interval needs two."""
    types = images.probabilities.shape[1]

    def groups_with(mask: NDArray[np.bool_]) -> int:
        return len(np.unique(images.group[mask]))

    of_type = np.array([groups_with(images.labels == kind) for kind in range(types)], dtype=np.float64)
    of_rest = np.array([groups_with(images.labels != kind) for kind in range(types)], dtype=np.float64)
    said = np.array([groups_with(images.predicted == kind) for kind in range(types)], dtype=np.float64)
    everything = np.full(types, images.number_of_groups, dtype=np.float64)
    return {
        "sensitivity": of_type,
        "specificity": of_rest,
        "precision": np.where(said > 0, said, of_type),
        "f1": of_type,
        "auroc": np.minimum(of_type, of_rest),
        "accuracy": everything,
    }


def _estimate(
    point: dict[str, Floats], resampled: dict[str, Floats], name: str, groups: Floats, kind: int | None = None
) -> Estimate:
    """One measure (of one type) with its interval; `groups` [C] as `_groups_behind` counts them."""
    value = float(point[name] if kind is None else point[name][kind])
    behind = groups[0 if kind is None else kind]
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    if not resampled or behind < 2:
        return {"value": value, "low": None, "high": None}
    draws = resampled[name] if kind is None else resampled[name][:, kind]
    if name == "calibration_error":
        # Its absolute values make a resampled error larger on average: take the spread, around the value.
        draws = np.maximum(0.0, draws - draws.mean() + value)
    is_proportion = name in ("accuracy", "type_accuracy", "sensitivity", "specificity", "precision")
    return interval(value, draws, np.array([behind]) if is_proportion else None)


def _macro_estimate(
    point: dict[str, Floats], resampled: dict[str, Floats], name: str, groups_of_types: Floats
) -> Estimate:
    """The mean of a measure over the types present; in a resample, over those that it holds."""
    values = point[name][~np.isnan(point[name])]
    if values.size == 0:
        return {"value": None, "low": None, "high": None}
    value = float(values.mean())
    if not resampled:
        return {"value": value, "low": None, "high": None}
    there = ~np.isnan(resampled[name])
    with np.errstate(invalid="ignore"):
        draws = np.where(there, resampled[name], 0.0).sum(axis=1) / there.sum(axis=1)
    return interval(value, draws, groups_of_types if name == "sensitivity" else None)


def _reliability(images: ScoredImages) -> list[dict[str, float | int | None]]:
    """Per confidence bin: its limits, how many predictions fell in, their mean confidence and accuracy."""
    confidence = images.probabilities.max(axis=1)
    right = images.labels == images.predicted
    bins: list[dict[str, float | int | None]] = []
    for number in range(CALIBRATION_BINS):
        inside = images.calibration_bin == number
        count = int(inside.sum())
        bins.append(
            {
                "low": number / CALIBRATION_BINS,
                "high": (number + 1) / CALIBRATION_BINS,
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return bins
