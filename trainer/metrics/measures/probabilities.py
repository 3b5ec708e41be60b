"""Measures of a classifier's probabilities: area under the ROC curve, calibration error, likelihood."""

import math

import numpy as np

from trainer.metrics.bootstrap import CALIBRATION_BINS, Floats, Ranking, Resamples
from trainer.metrics.measures import EVERYWHERE, Measure, register


def auroc(answers: Resamples) -> Floats:
    """Area under the ROC curve [b, C]; NaN where no other type is there."""
    return np.stack([_area(ranking, answers.weights) for ranking in answers.images.rankings], axis=1)


def calibration_error(answers: Resamples) -> Floats:
    """Expected calibration error [b]: mean absolute difference of confidence and accuracy over the bins."""
    images = answers.images
    excess = images.confidence - (images.labels == images.predicted)
    cell = images.group * CALIBRATION_BINS + images.calibration_bin
    of_group = np.bincount(cell, excess, images.number_of_groups * CALIBRATION_BINS).reshape(-1, CALIBRATION_BINS)
    return np.asarray(np.abs(answers.weights.T @ of_group).sum(axis=1) / answers.count)


def negative_log_likelihood(answers: Resamples) -> Floats:
    """Mean -log p(true type) [b], in nats; a smaller probability counts as 1e-12, so that one image stays one."""
    images = answers.images
    true = images.probabilities[np.arange(len(images.labels)), images.labels]
    return answers.mean(-np.log(np.maximum(true, 1e-12)))


def _area(ranking: Ranking, weights: Floats) -> Floats:
    """P(an image of the type ranks above one of the rest), ties half, for each column of weights [groups, b]."""
    type_weights = weights[ranking.type_groups]
    lighter = np.zeros((len(ranking.rest_groups) + 1, weights.shape[1]))
    np.cumsum(weights[ranking.rest_groups], axis=0, out=lighter[1:])
    won = 0.5 * np.einsum("ib,ib->b", type_weights, lighter[ranking.below] + lighter[ranking.not_above])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(won / (type_weights.sum(axis=0) * lighter[-1]))


# Costs more than all other measures together, so a sweep does not resample it for each trial.
register(Measure("auroc", "Mean AUROC", auroc, rests_on="both", shown=EVERYWHERE - {"sweeps"}))
register(
    Measure(
        "calibration_error",
        "Calibration error",
        over_all=calibration_error,
        higher_is_better=False,
        centred=True,
        shown=frozenset({"headline"}),
    )
)
register(
    Measure(
        "negative_log_likelihood",
        "Negative log likelihood, nats",
        over_all=negative_log_likelihood,
        epoch_name="loss",
        higher_is_better=False,
        percent=False,
        bounds=(0.0, math.inf),
        shown=frozenset(),
    )
)
