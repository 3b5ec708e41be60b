"""Heads on features of a frozen network: fitted in seconds, their setting chosen on images that were held out."""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional

from models.classifiers.nearest_neighbours import NearestNeighbours
from trainer.metrics.classification import epoch_scores

HeadKind = Literal["linear", "nearest"]
Features = NDArray[np.float32]
Labels = NDArray[np.int64]

FOLDS = 5  # of a cross-validation, at most
# The settings that are tried: l2 penalties, strongest first, and numbers of neighbours.
SETTINGS: dict[HeadKind, tuple[float, ...]] = {
    "linear": (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001),
    "nearest": (1, 5, 10, 20),
}
# Where nothing can be held out: a type has one image only, or all images are of one group.
_DEFAULT: dict[HeadKind, float] = {"linear": 0.1, "nearest": 1}


@dataclass(frozen=True)
class FittedHead:
    """A head fitted to all training images, and how its setting was chosen."""

    head: nn.Module  # features float32 [n, d] -> logits float32 [n, types]
    setting: float  # l2 penalty, or number of neighbours
    scores: dict[str, float]  # of held-out images under this setting, by `Measure.epoch_name`; empty: none held out
    chosen_by: str  # "validation images", "cross-validation in 5 folds", "default"

    @property
    def balanced_accuracy(self) -> float:
        """Of held-out images; NaN where none could be held out."""
        return self.scores.get("balanced_accuracy", float("nan"))


def choose_head(
    kind: HeadKind,
    features: Features,
    labels: Labels,
    types: int,
    *,
    validation: tuple[Features, Labels] | None = None,
    groups: NDArray[np.generic] | None = None,
    weights: Features | None = None,
) -> FittedHead:
    """Fit a head to features [n, d] and labels [n]; its setting has the lowest log loss on images that were held out.

    Held out are the `validation` images, or else each fold of a stratified cross-validation in turn, in which images
    of one group (a patient; default: every image is its own) stay together. Every type weighs the same in the log loss.
    The log loss distinguishes settings whose accuracies are equal on few images. weights: of the images in the loss of
    a linear head (see `balanced_weights`).
    """
    settings = SETTINGS[kind]
    if validation is not None:
        logits = _predict(_path(kind, features, labels, types, settings, weights), validation[0])
        truth, chosen_by = validation[1], "validation images"
    else:
        folds = _folds(labels, groups)
        if not folds:
            head = _path(kind, features, labels, types, (_DEFAULT[kind],), weights)[0]
            return FittedHead(head, _DEFAULT[kind], {}, "default")
        logits, truth = torch.empty(len(settings), len(labels), types), labels
        for held in folds:
            rest = np.setdiff1d(np.arange(len(labels)), held)
            among = None if weights is None else weights[rest]
            heads = _path(kind, features[rest], labels[rest], types, settings, among)
            logits[:, torch.from_numpy(held)] = _predict(heads, features[held])
        chosen_by = f"cross-validation in {len(folds)} folds"
    shares = torch.from_numpy(balanced_weights(truth, types))
    losses = [functional.cross_entropy(each, torch.from_numpy(truth), reduction="none") @ shares for each in logits]
    best = int(torch.stack(losses).argmin())
    head = _path(kind, features, labels, types, settings[: best + 1], weights)[-1]
    scores = epoch_scores(logits[best].softmax(dim=1).numpy(), truth)
    return FittedHead(head, settings[best], scores, chosen_by)


def discriminants_out_of_fold(
    features: Features, labels: Labels, types: int, folds: list[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Probabilities [n, types] of each image by linear discriminants (shrinkage 0.3) of the images of other folds.

    Every type is as probable before the image is seen. Where a few labels are wrong, they judge others better than
    `choose_head`, which fits the wrong ones, too. A type without an image in the other folds has probability 0.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # here: slow to import

    probabilities = np.zeros((len(labels), types), np.float32)
    for held in folds:
        rest = np.setdiff1d(np.arange(len(labels)), held)
        there = np.unique(labels[rest])
        if len(there) < 2 or len(rest) <= len(there):  # too few to fit anything to
            probabilities[np.ix_(held, there)] = 1 / len(there)
            continue
        fitted = LinearDiscriminantAnalysis("lsqr", shrinkage=0.3, priors=np.full(len(there), 1 / len(there)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a type with one image
            fitted.fit(features[rest], labels[rest])
        probabilities[np.ix_(held, there)] = fitted.predict_proba(features[held])
    return probabilities


def folds_for_all(labels: Labels, groups: NDArray[np.generic], most: int = FOLDS) -> list[NDArray[np.int64]]:
    """Held-out rows of each fold, stratified; images of one group stay together. Rare types do not reduce the folds."""
    # Types with fewer images than folds are dealt out with those of the largest type.
    counts = np.bincount(labels)
    return _folds(np.where(counts[labels] < most, counts.argmax(), labels), groups, most)


def fit_linear(
    features: Features,
    labels: Labels,
    types: int,
    l2: float,
    weights: Features | None = None,
    towards: nn.Linear | None = None,
) -> nn.Linear:
    """Multinomial logistic regression: the minimum of mean cross-entropy + l2 / 2 * the weights' square.

    Features float [n, d] are standardised for the fit, and the standardisation is folded into the returned layer, which
    takes them as they are. weights: of the images, float [n]; they are scaled to a mean of 1. A type without an image
    gets a low logit everywhere. towards: a layer whose weights the penalty draws the fitted ones to, instead of zero.
    """
    return regularisation_path(features, labels, types, (l2,), weights, towards)[0]


def regularisation_path(
    features: Features,
    labels: Labels,
    types: int,
    penalties: tuple[float, ...],
    weights: Features | None = None,
    towards: nn.Linear | None = None,
) -> list[nn.Linear]:
    """`fit_linear` for several l2 penalties, each from the solution before it: give the strongest first."""
    inputs, truth = torch.from_numpy(features).float(), torch.from_numpy(labels)
    before = torch.zeros(types) if towards is None else towards(inputs).detach()
    mean, deviation = inputs.mean(dim=0), inputs.std(dim=0, correction=0)
    deviation = torch.where(deviation > 1e-6 * mean.abs().clamp_min(1e-6), deviation, 1.0)  # a constant feature
    inputs = (inputs - mean) / deviation
    shares = torch.ones(len(truth)) if weights is None else torch.from_numpy(weights).float()
    shares = shares / shares.sum()
    weight, bias = torch.zeros(types, inputs.shape[1]), torch.zeros(types)
    heads = []
    for l2 in penalties:
        _minimise(inputs, truth, shares, before, l2, weight, bias)
        head = nn.Linear(inputs.shape[1], types)
        folded = weight.detach() / deviation
        offset = bias.detach() - folded @ mean
        if towards is not None:
            folded, offset = folded + towards.weight.detach(), offset + towards.bias.detach()
        head.load_state_dict({"weight": folded, "bias": offset})
        heads.append(head.requires_grad_(False))
    return heads


def balanced_weights(labels: Labels, types: int) -> Features:
    """Weights float32 [n] under which every type that is there counts the same; their mean is 1."""
    counts = np.bincount(labels, minlength=types)
    return (len(labels) / ((counts > 0).sum() * counts[labels])).astype(np.float32)


def _minimise(
    inputs: Tensor, truth: Tensor, shares: Tensor, before: Tensor, l2: float, weight: Tensor, bias: Tensor
) -> None:
    """Move weight [types, d] and bias [types] to the minimum of the penalised loss, in place; before: added logits."""
    optimizer = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=300,
        tolerance_grad=1e-5,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        each = functional.cross_entropy(before + functional.linear(inputs, weight, bias), truth, reduction="none")
        value = (shares * each).sum() + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)


def _path(
    kind: HeadKind,
    features: Features,
    labels: Labels,
    types: int,
    settings: tuple[float, ...],
    weights: Features | None,
) -> list[nn.Module]:
    if kind == "linear":
        return list(regularisation_path(features, labels, types, settings, weights))
    stored, known = torch.from_numpy(features), torch.from_numpy(labels)
    return [NearestNeighbours(stored, known, types, int(neighbours)) for neighbours in settings]


@torch.no_grad()
def _predict(heads: list[nn.Module], features: Features) -> Tensor:
    """Logits [heads, n, types]."""
    return torch.stack([head(torch.from_numpy(features)) for head in heads])


def _folds(labels: Labels, groups: NDArray[np.generic] | None, most: int = FOLDS) -> list[NDArray[np.int64]]:
    """Held-out rows of each fold; empty where a type has one image, or one group holds all images.

    As many folds as the rarest type has images, or as there are groups, at most 5.
    """
    groups = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    rarest = np.unique(labels, return_counts=True)[1].min()
    folds = int(min(most, rarest, len(np.unique(groups))))
    if folds < 2:
        return []
    grouped = len(np.unique(groups)) < len(labels)
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a type in fewer groups than folds: it is missing from some
        parts = [held for _, held in splitter.split(np.zeros(len(labels)), labels, groups)]
    return [held for held in parts if 0 < len(held) < len(labels)]
