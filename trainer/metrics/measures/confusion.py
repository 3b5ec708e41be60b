"""Measures of a classifier's answers: accuracy, and each type against the rest."""

import numpy as np

from trainer.metrics.bootstrap import Floats, Resamples
from trainer.metrics.measures import EVERYWHERE, Measure, register


def accuracy(answers: Resamples) -> Floats:
    """Share of right answers [b]."""
    right = np.diagonal(answers.confusion, axis1=1, axis2=2).sum(axis=1)
    return np.asarray(right / answers.count)


def type_accuracy(answers: Resamples) -> Floats:
    """(TP + TN) / n of each type [b, C], as in figures 53 and 54."""
    confusion = answers.confusion
    right = np.diagonal(confusion, axis1=1, axis2=2)
    wrong = confusion.sum(axis=2) + confusion.sum(axis=1) - 2 * right
    return np.asarray(1 - wrong / answers.count[:, None])


def sensitivity(answers: Resamples) -> Floats:
    """TP / (TP + FN), also called recall [b, C]."""
    right, has, _ = _counts(answers)
    return _ratio(right, has)


def specificity(answers: Resamples) -> Floats:
    """TN / (TN + FP) [b, C]; NaN where no other type is there."""
    right, has, said = _counts(answers)
    rest = answers.count[:, None] - has
    return _ratio(rest - (said - right), rest)


def precision(answers: Resamples) -> Floats:
    """TP / (TP + FP) [b, C]; 0 for a type that is never predicted, as in scikit-learn."""
    right, _, said = _counts(answers)
    return np.where(said > 0, _ratio(right, said), 0.0)


def f1(answers: Resamples) -> Floats:
    """Harmonic mean of precision and sensitivity [b, C]."""
    right, has, said = _counts(answers)
    return _ratio(2 * right, has + said)


def _counts(answers: Resamples) -> tuple[Floats, Floats, Floats]:
    """Right answers, images and predictions of each type, [b, C] each."""
    confusion = answers.confusion
    return np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2), confusion.sum(axis=1)


def _ratio(part: Floats, whole: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(part / whole)


register(
    Measure("accuracy", "Accuracy", type_accuracy, accuracy, epoch_name="accuracy", proportion=True, rests_on="all")
)
register(
    Measure(
        "balanced_accuracy",
        "Balanced accuracy = mean sensitivity",
        sensitivity,
        epoch_name="balanced_accuracy",
        proportion=True,
        shown=EVERYWHERE - {"types"},
    )
)
register(Measure("sensitivity", "Mean sensitivity", sensitivity, proportion=True, shown=EVERYWHERE - {"headline"}))
register(Measure("specificity", "Mean specificity", specificity, proportion=True, rests_on="rest"))
register(Measure("precision", "Mean precision", precision, proportion=True, rests_on="answers"))
register(Measure("f1", "Mean F1", f1, epoch_name="f1"))
