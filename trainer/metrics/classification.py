"""Scores of a cell-type classifier, overall and per type, with intervals over groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.metrics.bootstrap import CALIBRATION_BINS, Estimate, Floats, ScoredImages, interval
from trainer.metrics.measures import Measure, epoch_measures, measures, shown, values_of
from trainer.metrics.selective import Selective, selective_scores

Probabilities = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

TRUST = ("calibration_error", "negative_log_likelihood")
INTERVAL_METHOD = (
    "95 % percentile bootstrap over groups; where every answer was right (or none), "
    "the exact binomial bound with one trial per group; none where resamples do not differ"
)

_CONSOLE_COLUMNS = ("sensitivity", "specificity", "precision", "f1")  # more would not fit a terminal


@dataclass(frozen=True)
class TypeScores:
    """Scores of one cell type against the rest."""

    count: int  # images of the type
    groups: int  # groups with an image of the type
    measures: dict[str, Estimate]  # empty estimates for a type without an image

    def __getitem__(self, measure: str) -> Estimate:
        return self.measures[measure]


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions whose confidence lies in low..high."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean; None in an empty bin
    accuracy: float | None


@dataclass(frozen=True)
class IntervalMethod:
    """How intervals were computed."""

    method: str
    resamples: int
    seed: int


@dataclass(frozen=True)
class Scores:
    """A classifier's scores on a set of images."""

    count: int  # images
    groups: int  # patients or slides
    interval: IntervalMethod
    overall: dict[str, Estimate]  # every measure over all types
    per_type: dict[str, TypeScores]  # the measures that are defined per type
    confusion: list[list[int]]  # [C][C], true type in rows
    reliability: list[ReliabilityBin]  # bins of the calibration error
    selective: Selective  # accuracy of the most confident answers

    @property
    def absent(self) -> list[str]:
        """Types without an image: they have no scores and are left out of the means."""
        return [cell_type for cell_type, row in self.per_type.items() if not row.count]

    def __getitem__(self, measure: str) -> Estimate:
        return self.overall[measure]


@dataclass(frozen=True)
class Trust:
    """Calibration scores of predicted probabilities."""

    measures: dict[str, Estimate]  # the calibration error and the negative log likelihood
    reliability: list[ReliabilityBin]


def score(
    probabilities: Probabilities,
    labels: Labels,
    groups: Sequence[str],
    cell_types: Sequence[str],
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score predictions with every measure of the table.

    probabilities [n, C], each row summing to 1; labels int [n], indices into cell_types; groups [n], ''
    being a group of its own. A type without an image has empty estimates and is left out of the means, though
    predictions of it still count as wrong. There is no interval with one group only, or where resamples do not differ.
    Raises ValueError when the arrays disagree, are empty, or are no probabilities.
    """
    images = scored_images(probabilities, labels, groups, len(cell_types))
    chosen = list(measures().values())
    values = images.bootstrap(partial(values_of, chosen), bootstrap_samples, seed)
    overall, of_types = estimates(chosen, *values, images.confusions)
    has_type = images.confusions.sum(axis=2)  # [groups, C]
    per_type = {
        cell_type: TypeScores(
            int(has_type[:, index].sum()),
            int((has_type[:, index] > 0).sum()),
            {measure.name: of_types[measure.name][index] for measure in shown("types")},
        )
        for index, cell_type in enumerate(cell_types)
    }
    return Scores(
        len(images.labels),
        images.number_of_groups,
        IntervalMethod(INTERVAL_METHOD, bootstrap_samples, seed),
        overall,
        per_type,
        images.confusions.sum(axis=0).astype(int).tolist(),
        _reliability(images),
        selective_scores(images, bootstrap_samples, seed),
    )


def trust(probabilities: Probabilities, labels: Labels, groups: Sequence[str], cell_types: Sequence[str]) -> Trust:
    """Only the calibration part of `score`: calibration error, negative log likelihood and reliability bins.

    Intervals are by bootstrap over groups, as in `score`.
    """
    images = scored_images(probabilities, labels, groups, len(cell_types))
    chosen = [measures()[name] for name in TRUST]
    found, _ = estimates(chosen, *images.bootstrap(partial(values_of, chosen), 1000, 0), images.confusions)
    return Trust(found, _reliability(images))


def epoch_scores(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """The measures computed after each epoch, by `Measure.epoch_name`, without intervals.

    probabilities [n, C], labels int [n]. ValueError for a measure that has no value on these images.
    """
    images = scored_images(probabilities, labels, [""] * len(labels), probabilities.shape[1])
    scores = {name: float(measure.values(images.once)[0, 0]) for name, measure in epoch_measures().items()}
    missing = [name for name, value in scores.items() if np.isnan(value)]
    if missing:
        raise ValueError(f"measure {missing[0]}: no value on these images; it cannot be computed after each epoch")
    return scores


def estimates(
    chosen: Sequence[Measure],
    points: Floats,
    draws: Floats | None,
    confusions: Floats,
    differences: bool = False,
) -> tuple[dict[str, Estimate], dict[str, list[Estimate]]]:
    """Estimates of each measure: measure -> over all types, and measure -> list of the C types.

    points: values [measures, 1 + C]. draws: resampled values [B, measures, 1 + C]; None: no intervals. confusions:
    [groups, C, C]. differences: the values are differences of two classifiers; the exact binomial bound, which replaces
    the bootstrap where every answer is right or wrong, is then not used.
    """
    groups, total = _groups_behind(confusions), float(len(confusions))
    overall, of_types = {}, {}
    for number, measure in enumerate(chosen):
        behind = np.array([total, *groups[measure.rests_on]])
        found = []
        for column, value in enumerate(map(float, points[number])):
            trials: Floats | None = behind[[column]]
            if column == 0 and measure.over_all is None:
                # A mean over types whose images are apart; images of other types are shared by all of them.
                trials = groups["type"][groups["type"] > 0] if measure.rests_on == "type" else None
            if np.isnan(value):
                found.append(Estimate(None))
            elif draws is None or min(behind[column], total) < 2:
                found.append(Estimate(value))
            else:
                spread = draws[:, number, column]
                if measure.centred:
                    spread = np.clip(
                        spread - spread.mean() + value, *(measure.bounds if not differences else (None, None))
                    )
                found.append(interval(value, spread, trials if measure.proportion and not differences else None))
        overall[measure.name], of_types[measure.name] = found[0], found[1:]
    return overall, of_types


def _groups_behind(confusions: Floats) -> dict[str, Floats]:
    """Groups [C] behind a measure of each type, by `Measure.rests_on`; confusions [groups, C, C]."""
    has, said = confusions.sum(axis=2), confusions.sum(axis=1)
    of_type, answered = (has > 0).sum(axis=0).astype(float), (said > 0).sum(axis=0).astype(float)
    of_rest = (has.sum(axis=1, keepdims=True) > has).sum(axis=0).astype(float)
    return {
        "type": of_type,
        "rest": of_rest,
        "both": np.minimum(of_type, of_rest),
        "answers": np.where(answered > 0, answered, of_type),
        "all": np.full(len(of_type), float(len(confusions))),
    }


def format_scores(scores: Scores) -> str:
    """The scores as a table for the console, in per cent, ending without a newline."""
    lines = [f"{scores.count} images in {scores.groups} groups; 95 % intervals over groups"]
    lines += [f"{each.label:<38}{each.format(scores[each.name], brackets=True)}" for each in measures().values()]
    lines.append(f"{'error over coverage':<38}{scores.selective.risk_coverage_area.format(brackets=True)}")
    for share, estimate in scores.selective.accuracy_at_coverage.items():
        lines.append(f"{f'accuracy, surest {share} %':<38}{estimate.format(brackets=True)}")
    width = max(len(cell_type) for cell_type in scores.per_type) + 2
    columns = [measures()[name] for name in _CONSOLE_COLUMNS]
    lines += ["", f"{'':<{width}}{'images':>7}" + "".join(f"{each.name:>20}" for each in columns)]
    for cell_type, row in scores.per_type.items():
        cells = "".join(f"{each.format(row[each.name], brackets=True):>20}" for each in columns)
        lines.append(f"{cell_type:<{width}}{row.count:>7}{cells}".rstrip())
    if scores.absent:
        lines.append(f"not in the labels, left out of the means: {', '.join(scores.absent)}")
    return "\n".join(lines)


def scored_images(probabilities: Probabilities, labels: Labels, groups: Sequence[str], types: int) -> ScoredImages:
    """Check the arrays and turn group names into numbers, in the order of the names' first images."""
    table = np.array(probabilities, dtype=np.float64)
    truth = np.array(labels, dtype=np.int64)
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
    return ScoredImages(table, truth, table.argmax(axis=1), np.array(group, dtype=np.int64), len(numbers))


def _reliability(images: ScoredImages) -> list[ReliabilityBin]:
    right = images.labels == images.predicted
    bins = []
    for number in range(CALIBRATION_BINS):
        inside = images.calibration_bin == number
        means = [float(values[inside].mean()) if inside.any() else None for values in (images.confidence, right)]
        bins.append(
            ReliabilityBin(number / CALIBRATION_BINS, (number + 1) / CALIBRATION_BINS, int(inside.sum()), *means)
        )
    return bins
