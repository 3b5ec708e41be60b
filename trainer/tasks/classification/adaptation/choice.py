"""Which adaptation to use: what a run and its images allow, and cross-validation on a laboratory's labelled cells."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from data_pipeline.errors import UserError
from models.classifiers.fitted import FittedClassifier
from trainer.metrics.classification import Scores, score
from trainer.tasks.classification.adaptation.config import METHODS, WITH_LABELS, WITH_UNLABELLED, Choice
from trainer.tasks.classification.adaptation.laboratory import Images, Numbers
from trainer.tasks.classification.adaptation.methods import batch_norms, last_layer
from trainer.tasks.classification.inference.load import TrainedClassifier
from trainer.tasks.classification.reports.adaptation_record import Evidence, Method, MethodScores
from trainer.tasks.classification.reports.adaptation_section import WORDS
from trainer.tasks.classification.uncertainty.views import mean_log_probabilities

FOLDS = 3
# Below these a type is named among those to label more cells of.
ENOUGH_CELLS = 10
GOOD_SENSITIVITY = 0.8


def require_adaptable(trained: TrainedClassifier) -> None:
    """UserError for a run that no method can adapt."""
    if trained.normalizer is not None:
        raise UserError(f"{trained.folder}: adapt.py takes a classifier of raw images, without a normaliser")
    last_layer(trained.network)


def possible_methods(trained: TrainedClassifier, choice: Choice, labelled: int, unlabelled: int) -> list[Method]:
    """as_is and those of `choice` that the network and the numbers of images allow. UserError for one that is not."""
    refused: dict[Method, str] = {}
    if not labelled:
        refused |= dict.fromkeys(WITH_LABELS, "it needs labelled cells: give labelled=FOLDER")
    if not unlabelled:
        refused |= dict.fromkeys(WITH_UNLABELLED, "it needs unlabelled images: give images=FOLDER")
    if not batch_norms(trained.network):
        refused["statistics"] = f"{trained.folder} has no batch norms that follow running statistics of training"
    if isinstance(trained.network, FittedClassifier):
        why = f"the features of {trained.folder} are frozen: take method=head, or train a run that is not frozen"
        refused |= dict.fromkeys(("statistics", "all"), why)
    if choice == "auto":
        return [method for method in METHODS if method not in refused]
    if choice in refused:
        raise UserError(f"method={choice}: {refused[choice]}")
    return ["as_is"] if choice == "as_is" else ["as_is", choice]


@dataclass(frozen=True)
class Trial:
    """Answers of one method to labelled cells that it had not seen, and the scores of the mean over their views."""

    rows: Numbers  # [m], of the labelled cells; a row is there once for each repeat of a cross-validation
    answers: torch.Tensor  # log probabilities float32 [m, views, types]
    labels: Numbers  # [m]
    scores: Scores

    @property
    def right(self) -> NDArray[np.float64]:
        """Share of right answers to each labelled cell [n], over the repeats."""
        right = mean_log_probabilities(self.answers).argmax(dim=1).numpy() == self.labels
        return np.asarray(np.bincount(self.rows, right) / np.bincount(self.rows))

    def once(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Answers [n, views, types] and labels int64 [n] of the first repeat, in the order of the labelled cells."""
        first = np.unique(self.rows, return_index=True)[1]
        return self.answers[first], torch.from_numpy(self.labels[first])


def folds(images: Images, repeat: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Rows to learn from and rows to score, stratified by type; images of one patient or slide stay together.

    Nothing where all images are of one group, or each is the only one of its type.
    """
    groups = np.unique(np.array(images.groups), return_inverse=True)[1]
    count = min(FOLDS, len(np.unique(groups)), int(np.bincount(images.labels).max()))
    if count < 2:
        return
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=repeat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a type with fewer images than folds is missing from some
        parts = list(splitter.split(np.zeros(len(images)), images.labels, groups))
    yield from ((rest, held) for rest, held in parts if len(rest) and len(held))


def cross_validate(
    answers: Callable[[Numbers, Numbers], torch.Tensor], images: Images, cell_types: Sequence[str], repeats: int = 1
) -> Trial | None:
    """Score a method on images that it did not learn from; None where nothing can be held out.

    answers: rows to learn from and rows to score -> log probabilities [rows, views, types].
    """
    parts = [(held, answers(rest, held)) for repeat in range(repeats) for rest, held in folds(images, repeat)]
    if not parts:
        return None
    rows = np.concatenate([held for held, _ in parts])
    return trial(torch.cat([found for _, found in parts]), images, rows, cell_types)


def trial(answers: torch.Tensor, images: Images, rows: Numbers, cell_types: Sequence[str]) -> Trial:
    """Score the answers to these rows of the images; a row may be there several times."""
    labels, groups = images.labels[rows], [images.groups[row] for row in rows]
    probabilities = mean_log_probabilities(answers).double().softmax(dim=1).numpy()
    return Trial(rows, answers, labels, score(probabilities, labels, groups, cell_types))


def best_method(trials: Mapping[Method, Trial], labels: Numbers) -> Method:
    """The method to use, by answers to the same labelled cells; labels [n]: of these.

    It is the head if there is one, else as_is, unless another is better on the same cells by more than the standard
    error of the difference.
    """
    best: Method = "head" if "head" in trials else "as_is"
    for method in trials:
        gain, error = paired_gain(trials[method].right - trials[best].right, labels)
        if gain > error:
            best = method
    return best


def paired_gain(differences: NDArray[np.float64], labels: Numbers) -> tuple[float, float]:
    """Mean over types of the differences [n] on the cells of each, and its standard error."""
    each = [differences[labels == label] for label in np.unique(labels)]
    # One cell says nothing of the spread: that of a coin is assumed.
    variances = [part.var(ddof=1) / len(part) if len(part) > 1 else 0.25 for part in each]
    return float(np.mean([part.mean() for part in each])), float(np.sqrt(np.sum(variances)) / len(each))


def types_to_label(images: Images, chosen: Trial | None, cell_types: Sequence[str]) -> dict[str, str]:
    """Types with too few labelled cells, or often missed by the chosen method, and why; the worst first."""
    counts = np.bincount(images.labels, minlength=len(cell_types))
    missed: dict[str, tuple[float, str]] = {}
    for name, count in zip(cell_types, counts, strict=True):
        found = None if chosen is None else chosen.scores.per_type[name]["sensitivity"].value
        if len(images) and (count < ENOUGH_CELLS or (found is not None and found < GOOD_SENSITIVITY)):
            words = f"{count} labelled" + ("" if found is None else f", {100 * found:.0f} % found")
            missed[name] = (found or 0.0, words)
    return {name: missed[name][1] for name in sorted(missed, key=lambda name: missed[name][0])}


def advise(
    method: Method, scores: Sequence[MethodScores], evidence: Sequence[Evidence], to_label: Mapping[str, str]
) -> list[str]:
    """What to do, one line each: use as is, or adapt; what that rests on; which types to label more cells of."""
    lines = ["use as is: nothing that was tried is better" if method == "as_is" else f"adapt: {WORDS[method]}"]
    if scores:
        each = "; ".join(f"{WORDS[each.method]} {each.balanced_accuracy.format(brackets=True)}" for each in scores)
        lines.append(f"balanced accuracy on labelled cells that were held out, in per cent, with views=8: {each}")
        if len(scores) > 1:
            lines.append("the choice saw these cells, so its score is a little too high: score it on cells kept apart")
    elif evidence:
        each = "; ".join(
            f"{WORDS[each.method]} {100 * each.agreement:.0f} % (mean confidence {100 * each.confidence:.0f} %, "
            f"{100 * each.unchanged:.0f} % of answers as before)"
            for each in evidence
        )
        lines.append(f"mirrored and turned views of unlabelled images that agree: {each}")
        lines.append("how sure and steady answers are says little of how right they are: label 10 cells of each type")
    lines.append("predict and score with views=8, with which the choice was made")
    if to_label:
        named = ", ".join(f"{name} ({why})" for name, why in to_label.items())
        lines.append(f"label 10 more of these types, if they occur: {named}")
    return lines
