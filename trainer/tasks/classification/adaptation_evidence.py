"""What unlabelled images alone say of an adaptation, and which method they speak for.

Nothing here knows whether an answer is right. A classifier that understands a laboratory's images is sure of most of
its answers, keeps them when an image is mirrored or turned, and names several types. `information` is one number for
all three: the mutual information of image and answer, which is the mean divergence of an image's answer from the mean
answer of all images. It is 0 where all images get one answer, however sure, and where every answer is undecided.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.metrics.bootstrap import Estimate, group_weights, interval
from trainer.tasks.classification.adaptation_config import Method
from trainer.tasks.classification.adaptation_record import Evidence
from trainer.tasks.classification.calibration import calibrated_probabilities
from trainer.tasks.classification.views import mean_log_probabilities

# Views of each image that are compared; at most so many images are looked at.
VIEWS_COMPARED = 4
IMAGES = 400
RESAMPLES = 1000
# Zooms that are tried, times that of the run.
ZOOMS = (0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7)
# A type is named among those to label if it is the answer to this share of the images at least, and its mean confidence
# is below this.
NAMED_SHARE = 0.02
UNSURE = 0.8


def information(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divergence of each answer [n, types] from the mean answer, in nats [n]."""
    logs = np.log(np.maximum(probabilities, 1e-12))
    mean = np.log(np.maximum(probabilities.mean(axis=0), 1e-12))
    return np.asarray((probabilities * (logs - mean)).sum(axis=1))


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
    before = found["as_is"]
    rows = []
    for method, probabilities in found.items():
        answers = probabilities.argmax(axis=1)
        views = each_view[method].argmax(dim=2).numpy()
        counts = np.bincount(answers, minlength=len(cell_types))
        rows.append(
            Evidence(
                method,
                information=float(information(probabilities).mean()),
                gain=_mean_over_groups(information(probabilities) - information(before), groups),
                confidence=float(probabilities.max(axis=1).mean()),
                agreement=float((views == answers[:, None]).mean()),
                unchanged=float((answers == before.argmax(axis=1)).mean()),
                answers={name: int(count) for name, count in zip(cell_types, counts, strict=True)},
            )
        )
    return rows


def best_zoom(each_view: Mapping[float, torch.Tensor], groups: Sequence[str], temperature: float) -> float:
    """The zoom whose answers have the most information, if by more than chance explains; else 1, which is among them.

    each_view: zoom -> log probabilities [n, views, types] of the same images.
    """
    found = {zoom: information(probabilities_of(each, temperature)) for zoom, each in each_view.items()}
    best = max(found, key=lambda zoom: float(found[zoom].mean()))
    gain = _mean_over_groups(found[best] - found[1.0], groups)
    return best if gain.low is not None and gain.low > 0 else 1.0


def best_by_evidence(evidence: Sequence[Evidence]) -> Method:
    """The method with the most information, if it has more than as_is by more than chance explains; else as_is."""
    better = [each for each in evidence if each.gain.low is not None and each.gain.low > 0]
    return max(better, key=lambda each: each.information).method if better else "as_is"


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
