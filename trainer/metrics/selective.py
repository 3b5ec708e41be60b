"""Selective prediction: how right the answers are that a classifier is surest of (Geifman & El-Yaniv 2017)."""

from typing import Any

import numpy as np

from trainer.metrics.bootstrap import (
    Estimate,
    Floats,
    ScoredImages,
    all_right_lower_bound,
    group_weights,
    interval,
)

# Shares of the images that are answered, at which the accuracy is told.
COVERAGES = tuple(step / 20 for step in range(1, 21))
HEADLINE_COVERAGES = (0.8, 0.9, 0.95)


class RiskCoverage:
    """The images in falling order of confidence; images of one confidence are answered together or not at all."""

    def __init__(self, images: ScoredImages) -> None:
        confidence = images.probabilities.max(axis=1)
        self._order = np.argsort(-confidence, kind="stable")
        self._group = images.group[self._order]
        self._wrong = (images.labels != images.predicted)[self._order].astype(np.float64)
        falling = confidence[self._order]
        # The last image of each level of confidence.
        self._ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
        self._levels = falling[self._ends]

    def measures(self, weights: Floats) -> tuple[Floats, Floats]:
        """Of each column of the groups' weights [G, b]: accuracy [b, len(COVERAGES)], and the area [b].

        The accuracy at a coverage is of the fewest surest images that make it up. The area under the curve of risk
        (share of wrong answers) over coverage, AURC, is the mean over images of the risk among those as sure or surer.
        """
        answered, wrong = self._cumulative(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            risk = wrong / answered
        gained = np.diff(answered, axis=0, prepend=0.0)
        area = np.where(gained > 0, risk * gained, 0.0).sum(axis=0) / answered[-1]
        rows = self._rows(answered)
        return 1 - np.take_along_axis(risk, rows, axis=0).T, area

    def thresholds(self) -> tuple[Floats, list[int]]:
        """The least confidence that is answered at each of COVERAGES, and how many groups the answers then rest on."""
        answered, _ = self._cumulative(np.ones((int(self._group.max()) + 1, 1)))
        rows = self._rows(answered)[:, 0]
        groups = [len(np.unique(self._group[: self._ends[row] + 1])) for row in rows]
        return self._levels[rows], groups

    def _cumulative(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of the images, and of the wrong ones, down to each level of confidence: [levels, b] each."""
        each = weights[self._group]
        return each.cumsum(axis=0)[self._ends], (each * self._wrong[:, None]).cumsum(axis=0)[self._ends]

    def _rows(self, answered: Floats) -> Any:
        """The first level at which each of COVERAGES is made up: int64 [len(COVERAGES), b]."""
        share = answered / answered[-1]
        return np.stack([(share >= coverage - 1e-12).argmax(axis=0) for coverage in COVERAGES])


def selective_scores(images: ScoredImages, resamples: int, seed: int) -> dict[str, Any]:
    """How right the surest answers are, the others left to a person.

    "risk_coverage_area": see `RiskCoverage.measures`; "accuracy_at_coverage": of the surest 80, 90 and 95 % of the
    images; "curve": for each of COVERAGES its "accuracy" and the least "confidence" that is answered.
    """
    curve = RiskCoverage(images)
    (accuracy,), (area,) = curve.measures(np.ones((images.number_of_groups, 1)))
    thresholds, groups = curve.thresholds()
    if resamples > 0 and images.number_of_groups > 1:
        parts = [curve.measures(weights) for weights in group_weights(images.number_of_groups, resamples, seed)]
        accuracies, areas = (np.concatenate([part[i] for part in parts]) for i in range(2))
        estimates = [_accuracy(float(accuracy[i]), accuracies[:, i], groups[i]) for i in range(len(COVERAGES))]
        whole = interval(float(area), areas, None)
    else:
        estimates = [_accuracy(float(value), None, 1) for value in accuracy]
        whole = {"value": float(area), "low": None, "high": None}
    return {
        "risk_coverage_area": whole,
        "accuracy_at_coverage": {
            f"{100 * coverage:.0f}": estimates[COVERAGES.index(coverage)] for coverage in HEADLINE_COVERAGES
        },
        "curve": [
            {"coverage": coverage, "confidence": float(threshold), "accuracy": estimate}
            for coverage, threshold, estimate in zip(COVERAGES, thresholds, estimates, strict=True)
        ],
    }


def _accuracy(value: float, draws: Floats | None, groups: int) -> Estimate:
    if draws is None or groups < 2:
        return {"value": value, "low": None, "high": None}
    estimate = interval(value, draws, np.array([groups]))
    if value == 1 and estimate["low"] is not None:
        # A few draws with a wrong answer in them would leave an interval of one point.
        estimate["low"] = min(estimate["low"], all_right_lower_bound(np.array([groups])))
    return estimate
