"""Which adaptation to use: cross-validation on a laboratory's labelled cells, and what follows from it."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold

from trainer.metrics.classification import Scores, score
from trainer.tasks.classification.adaptation_config import Method
from trainer.tasks.classification.adaptation_data import Images, Numbers

FOLDS = 3
# Below these a type is named among those to label more cells of.
ENOUGH_CELLS = 10
GOOD_SENSITIVITY = 0.8


@dataclass(frozen=True)
class Trial:
    """Answers of one method to labelled cells that it had not seen, and their scores."""

    logits: torch.Tensor  # float32 [repeats * n, types]
    labels: Numbers  # [repeats * n]
    scores: Scores

    @property
    def balanced_accuracy(self) -> float:
        return float(self.scores["balanced_accuracy"].value or 0.0)


def folds(images: Images, repeat: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Rows to learn from and rows to score, stratified by type; images of one patient or slide stay together.

    Nothing where all images are of one group.
    """
    groups = np.unique(np.array(images.groups), return_inverse=True)[1]
    if groups.max() == 0:
        return
    splitter = StratifiedGroupKFold(min(FOLDS, int(groups.max()) + 1), shuffle=True, random_state=repeat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a type with fewer images than folds is missing from some
        parts = list(splitter.split(np.zeros(len(images)), images.labels, groups))
    yield from ((rest, held) for rest, held in parts if len(rest) and len(held))


def cross_validate(
    answers: Callable[[Numbers, Numbers], torch.Tensor], images: Images, cell_types: Sequence[str], repeats: int = 1
) -> Trial | None:
    """Score a method on images that it did not learn from; None where nothing can be held out.

    answers: rows to learn from and rows to score -> logits [rows, types].
    """
    parts = [(held, answers(rest, held)) for repeat in range(repeats) for rest, held in folds(images, repeat)]
    if not parts:
        return None
    rows = np.concatenate([held for held, _ in parts])
    return trial(torch.cat([logits for _, logits in parts]), images, rows, cell_types)


def trial(logits: torch.Tensor, images: Images, rows: Numbers, cell_types: Sequence[str]) -> Trial:
    """Score the logits of these rows of the images; a row may be there several times."""
    labels, groups = images.labels[rows], [images.groups[row] for row in rows]
    return Trial(logits, labels, score(logits.double().softmax(dim=1).numpy(), labels, groups, cell_types))


def best_method(trials: Mapping[Method, Trial]) -> Method:
    """The method with the highest balanced accuracy, of equal ones the first."""
    return max(trials, key=lambda method: trials[method].balanced_accuracy)


def types_to_label(images: Images, chosen: Trial | None, cell_types: Sequence[str]) -> list[str]:
    """Types with too few labelled cells, or often missed by the chosen method; the worst first."""
    counts = np.bincount(images.labels, minlength=len(cell_types))
    missed: dict[str, float] = {}
    for name, count in zip(cell_types, counts, strict=True):
        found = None if chosen is None else chosen.scores.per_type[name]["sensitivity"].value
        if count < ENOUGH_CELLS or (found is not None and found < GOOD_SENSITIVITY):
            missed[name] = float(found) if found is not None else 0.0
    return sorted(missed, key=lambda name: missed[name])
