"""How well a classifier knows what it does not know: coverage of its sets, and unfamiliarity of unknown types."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from trainer.metrics.bootstrap import Estimate, Floats, Resamples, ScoredImages, interval
from trainer.metrics.classification import scored_images
from trainer.metrics.conformal import prediction_sets
from trainer.metrics.measures import measures

UNFAMILIARITY = "unfamiliarity"  # column: 0 for the median validation image, 1 at the limit of what is familiar
# Coverages that a report shows.
COVERAGES = (0.8, 0.9, 0.95, 0.99)
_RESAMPLES = 1000


@dataclass(frozen=True)
class SetScores:
    """Sets of types at one coverage."""

    coverage: float  # asked for
    covered: Estimate  # share of the images whose set holds the true type
    size: Estimate  # mean number of types in a set
    empty: Estimate  # share of the images whose set is empty


@dataclass(frozen=True)
class UnknownType:
    """Images of a type that the classifier does not know, or of no cell."""

    count: int
    unfamiliar: float  # share of them that are marked out of distribution
    auroc: Estimate  # of the unfamiliarity, against the scored images of known types


@dataclass(frozen=True)
class UncertaintyRecord:
    """Scores of sets and of unfamiliarity."""

    sets: list[SetScores]  # one for each of COVERAGES
    unfamiliar: Estimate  # share of the scored images that are marked out of distribution, though their type is known
    unknown: dict[str, UnknownType]  # by type, or kind of pictures


def uncertainty_scores(
    samples: pd.DataFrame,
    probabilities: Floats,
    cell_types: Sequence[str],
    least: Mapping[float, float],
    unknown: pd.DataFrame,
) -> UncertaintyRecord:
    """Scores with 95 % intervals over groups.

    samples: columns cell_type, group, unfamiliarity of n images, with calibrated probabilities [n, C]. least:
    coverage -> threshold of the sets (`least_probability`). unknown: the same columns for images of other types, or of
    no cell.
    """
    labels = samples["cell_type"].map(list(cell_types).index).to_numpy(np.int64)
    images = scored_images(probabilities, labels, samples["group"].tolist(), len(cell_types))
    sets = []
    for coverage, threshold in least.items():
        held = prediction_sets(images.probabilities, threshold)
        sizes = held.sum(axis=1)
        covered = held[np.arange(len(labels)), labels]
        sets.append(SetScores(coverage, _mean(images, covered), _mean(images, sizes), _mean(images, sizes == 0)))
    of_types = {
        str(name): UnknownType(len(part), float((part[UNFAMILIARITY] > 1).mean()), auroc(samples, part))
        for name, part in unknown.groupby("cell_type")
    }
    return UncertaintyRecord(sets, _mean(images, samples[UNFAMILIARITY] > 1), of_types)


def auroc(known: pd.DataFrame, unknown: pd.DataFrame) -> Estimate:
    """Area under the ROC curve of unfamiliarity, which is to be higher for unknown images.

    known, unknown: columns unfamiliarity and group.
    """
    both = pd.concat([known, unknown])
    ranks = both[UNFAMILIARITY].rank().to_numpy(np.float64) / len(both)
    labels = np.repeat([0, 1], [len(known), len(unknown)])
    images = scored_images(np.stack([1 - ranks, ranks], axis=1), labels, both["group"].tolist(), 2)
    measure = measures()["auroc"]
    return _estimate(images, lambda answers: measure.values(answers)[:, 2], None)


def _mean(images: ScoredImages, values: ArrayLike) -> Estimate:
    trials = np.array([float(images.number_of_groups)])
    return _estimate(images, lambda answers: answers.mean(np.asarray(values, np.float64)), trials)


def _estimate(images: ScoredImages, value: Callable[[Resamples], Floats], trials: Floats | None) -> Estimate:
    point, draws = images.bootstrap(value, _RESAMPLES, 0)
    return interval(float(point), draws, trials)
