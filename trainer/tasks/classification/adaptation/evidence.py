"""What unlabelled images alone say of an adaptation, and which method they speak for.

Nothing here knows whether an answer is right. A classifier that understands a laboratory's images keeps its answers
when an image is mirrored or turned, is sure of most, and names several types. On two laboratories the agreement of
views rose with accuracy; mutual information of image and answer rose under every method, better or worse.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.metrics.bootstrap import Estimate, group_weights, interval
from trainer.tasks.classification.reports.adaptation_record import Evidence, Method
from trainer.tasks.classification.uncertainty.calibration import calibrated_probabilities
from trainer.tasks.classification.uncertainty.views import mean_log_probabilities

# At most so many unlabelled images are looked at; ids are hashes, so the first are a random draw.
IMAGES = 400
RESAMPLES = 1000
# Self-training is taken with so many images, answered types and answers as before, at least.
LEAST_IMAGES = 40
LEAST_TYPES = 3
LEAST_UNCHANGED = 0.6
# A type is named among those to label if it is the answer to this share of the images at least, and its mean confidence
# is below this.
NAMED_SHARE = 0.02
UNSURE = 0.8


def probabilities_of(each_view: torch.Tensor, temperature: float) -> NDArray[np.float64]:
    """Calibrated probabilities [n, types] of the mean over views; each_view: log probabilities [n, views, types]."""
    return calibrated_probabilities(mean_log_probabilities(each_view), temperature).numpy()


def evidence_of(
    each_view: Mapping[Method, torch.Tensor], groups: Sequence[str], cell_types: Sequence[str], temperature: float
) -> list[Evidence]:
    """For each method what its answers to the same unlabelled images say; as_is is among them.

    each_view: log probabilities [n, views, types]. groups: of the images. temperature: of the mean over the views.
    """
    found = {method: probabilities_of(each, temperature) for method, each in each_view.items()}
    before = found["as_is"].argmax(axis=1)
    agreement = {
        method: (each_view[method].argmax(dim=2).numpy() == each.argmax(axis=1)[:, None]).mean(axis=1)
        for method, each in found.items()
    }
    rows = []
    for method, probabilities in found.items():
        answers = probabilities.argmax(axis=1)
        counts = np.bincount(answers, minlength=len(cell_types))
        rows.append(
            Evidence(
                method,
                confidence=float(probabilities.max(axis=1).mean()),
                agreement=float(agreement[method].mean()),
                gain=_mean_over_groups(agreement[method] - agreement["as_is"], groups),
                unchanged=float((answers == before).mean()),
                answers={name: int(count) for name, count in zip(cell_types, counts, strict=True)},
            )
        )
    return rows


def best_by_evidence(evidence: Sequence[Evidence], home: bool) -> Method:
    """The method to use without labels; home: something is known of the run's own training images.

    self_training, if `home`, at least LEAST_IMAGES images are answered, LEAST_TYPES types are named, a share of at
    least LEAST_UNCHANGED of the answers stays, and views do not agree less than chance explains: without these
    conditions it lost accuracy. Else statistics, if views then agree more than chance explains. Else as_is. What each
    gains stands in tests/benchmarks/README.md.
    """
    found = {each.method: each for each in evidence}
    trained, statistics = found.get("self_training"), found.get("statistics")
    if home and trained is not None and sum(trained.answers.values()) >= LEAST_IMAGES:
        named = sum(count >= NAMED_SHARE * sum(trained.answers.values()) for count in trained.answers.values())
        steady = trained.gain.high is None or trained.gain.high >= 0
        if named >= LEAST_TYPES and trained.unchanged >= LEAST_UNCHANGED and steady:
            return "self_training"
    if statistics is not None and statistics.gain.low is not None and statistics.gain.low > 0:
        return "statistics"
    return "as_is"


def unsure_types(probabilities: NDArray[np.float64], cell_types: Sequence[str]) -> dict[str, str]:
    """Types that are often answered with low confidence, the most wrong answers first; how often and how sure."""
    confidence, answers = probabilities.max(axis=1), probabilities.argmax(axis=1)
    expected: dict[str, tuple[float, str]] = {}
    for index, name in enumerate(cell_types):
        own = confidence[answers == index]
        if len(own) >= max(2, NAMED_SHARE * len(answers)) and own.mean() < UNSURE:
            expected[name] = ((1 - own).sum(), f"the answer to {len(own)}, mean confidence {100 * own.mean():.0f} %")
    return {name: expected[name][1] for name in sorted(expected, key=lambda name: -expected[name][0])}


def _mean_over_groups(values: NDArray[np.float64], groups: Sequence[str]) -> Estimate:
    """Mean of the values [n], with an interval by bootstrap over groups."""
    number = np.unique(np.array(groups), return_inverse=True)[1]
    sums, counts = np.bincount(number, values), np.bincount(number)
    draws = [weights.T @ sums / (weights.T @ counts) for weights in group_weights(len(counts), RESAMPLES, 0)]
    return interval(float(values.mean()), np.concatenate(draws), None)
