"""Selective prediction: how right the answers are that a classifier is surest of (Geifman & El-Yaniv 2017)."""

from dataclasses import dataclass, replace

import numpy as np

from trainer.metrics.bootstrap import Estimate, Floats, Resamples, ScoredImages, all_right_lower_bound, interval

# Shares of images answered that the curve shows.
COVERAGES = np.arange(1, 21) / 20
HEADLINE_COVERAGES = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class CoveragePoint:
    """A point of the risk-coverage curve: only the most confident answers count."""

    coverage: float  # share of the images answered
    confidence: float  # least confidence among them
    accuracy: Estimate


@dataclass(frozen=True)
class Selective:
    """Accuracy of the most confident answers, if a person decides the other images."""

    risk_coverage_area: Estimate  # mean over images of the error rate among images of equal or higher confidence
    accuracy_at_coverage: dict[str, Estimate]  # accuracy of the most confident 80, 90 and 95 % of the images
    curve: list[CoveragePoint]  # one for each of COVERAGES


def selective_scores(images: ScoredImages, resamples: int, seed: int) -> Selective:
    """The risk-coverage curve of the images with its intervals.

    The accuracy at a coverage is of the fewest surest images that reach it; images of equal confidence are answered
    together or not at all.
    """
    order = np.argsort(-images.confidence, kind="stable")
    falling, group = images.confidence[order], images.group[order]
    wrong = (images.labels != images.predicted)[order].astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # the last image of each confidence

    def measured(answers: Resamples) -> Floats:
        """Accuracy at each coverage, the level that reaches it, and the area: [b, 2 K + 1]."""
        each = answers.weights[group]
        answered = each.cumsum(axis=0)[ends]
        with np.errstate(divide="ignore", invalid="ignore"):
            risk = (each * wrong[:, None]).cumsum(axis=0)[ends] / answered
        gained = np.diff(answered, axis=0, prepend=0.0)
        area = np.where(gained > 0, risk * gained, 0.0).sum(axis=0) / answered[-1]
        share = answered / answered[-1]
        levels = np.stack([(share >= coverage - 1e-12).argmax(axis=0) for coverage in COVERAGES])
        return np.vstack([1 - np.take_along_axis(risk, levels, axis=0), levels, area]).T

    values, draws = images.bootstrap(measured, resamples, seed)
    levels = values[len(COVERAGES) : -1].astype(int)
    groups = [len(np.unique(group[: ends[level] + 1])) for level in levels]
    accuracies = [
        _accuracy(float(values[i]), None if draws is None else draws[:, i], groups[i]) for i in range(len(COVERAGES))
    ]
    return Selective(
        interval(float(values[-1]), None if draws is None else draws[:, -1], None),
        {f"{100 * share:.0f}": accuracies[COVERAGES.tolist().index(share)] for share in HEADLINE_COVERAGES},
        [
            CoveragePoint(float(coverage), float(falling[ends[level]]), accuracy)
            for coverage, level, accuracy in zip(COVERAGES, levels, accuracies, strict=True)
        ],
    )


def _accuracy(value: float, draws: Floats | None, groups: int) -> Estimate:
    estimate = interval(value, draws if groups > 1 else None, np.array([groups]))
    if value == 1 and estimate.low is not None:
        # A few draws with a wrong answer in them would leave an interval of one point.
        return replace(estimate, low=min(estimate.low, all_right_lower_bound(np.array([groups]))))
    return estimate
