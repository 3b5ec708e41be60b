"""Whether traces of their making distinguish generated images from real ones: a shortcut for a classifier.

Gradient boosting on traces of upsampling, compression and colour. Where it succeeds, a network trained on both kinds
can learn which images are generated instead of which are lymphocytes, if types have different shares of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor
from torch.nn import functional

from trainer.metrics.bootstrap import Estimate
from trainer.metrics.classification import score

Floats = NDArray[np.float64]

_FOLDS = 5
_GRID = 8  # cells of the spectrum along each axis
_PERIOD = 8  # pixels: JPEG's blocks; also the steps of three doublings
_BATCH = 64


@dataclass(frozen=True)
class Detection:
    """How well a classifier distinguishes generated from real images; 0.5 in both measures is chance."""

    real: int  # number of real images
    generated: int  # number of generated images
    folds: int  # of the cross-validation
    balanced_accuracy: Estimate
    auroc: Estimate


def detect_generated(real: Floats, real_groups: Sequence[str], generated: Floats, seed: int) -> Detection | None:
    """Score gradient boosting at "real or generated?" by cross-validation; None if there are too few images.

    real, generated: features [n, t] and [m, t] from `traces`, n and m about equal. real_groups: patient of each real
    image, '' for a group of its own; a group is never divided between folds. Each generated image is a group of its
    own. Needs two groups and ten images on each side.
    """
    groups = [name or f"real {row}" for row, name in enumerate(real_groups)]
    groups += [f"generated {row}" for row in range(len(generated))]
    folds = min(_FOLDS, len(set(groups[: len(real)])), len(generated))
    if folds < 2 or min(len(real), len(generated)) < 10:
        return None
    points = np.concatenate([real, generated])
    labels = np.repeat([0, 1], [len(real), len(generated)])
    probabilities = np.zeros((len(points), 2))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(points, labels, groups):
        model = HistGradientBoostingClassifier(max_iter=60, min_samples_leaf=5, max_features=0.2, random_state=seed)
        probabilities[test] = _both(model.fit(points[train], labels[train]), points[test])
    scores = score(probabilities, labels, groups, ("real", "generated"), seed=seed)
    return Detection(len(real), len(generated), folds, scores["balanced_accuracy"], scores["auroc"])


def traces(images: Tensor) -> Floats:
    """Traces of how images float32 [n, 3, S, S] in [-1, 1] were made: float64 [n, t].

    Mean and deviation of each channel; of the grey image's spectrum the mean and the highest log power in each cell
    of a grid over both frequencies (upsampling leaves peaks); mean absolute step between neighbouring columns, and
    rows, at each of 8 phases, over its mean (blocks). S is 16 at least.
    """
    return np.concatenate([_traces(some.double().cpu()) for some in images.split(_BATCH)])


def _traces(images: Tensor) -> Floats:
    colours = torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)
    grey = images.mean(1)
    steps = [_phases(grey.diff(dim=2).abs().mean(1)), _phases(grey.diff(dim=1).abs().mean(2))]
    return np.asarray(torch.cat([colours, _spectrum(grey), *steps], dim=1).numpy(), dtype=np.float64)


def _spectrum(grey: Tensor) -> Tensor:
    """Mean and highest log power in each cell of a grid over |frequency| in y and x: [n, 2 * 64]."""
    window = torch.hann_window(grey.shape[-1], periodic=False, dtype=grey.dtype)  # borders would smear peaks
    centred = (grey - grey.mean((1, 2), keepdim=True)) * window * window[:, None]
    power = torch.fft.rfft2(centred).abs().square().add(1e-8).log()
    size = grey.shape[-1] // 2 + 1
    # A frequency and its mirror in y are the two of one cell.
    folded = torch.stack([power[:, :size], power.roll(-1, 1).flip(1)[:, :size]], dim=1)
    means = functional.adaptive_avg_pool2d(folded.mean(1, keepdim=True), _GRID)
    peaks = functional.adaptive_max_pool2d(folded.amax(1, keepdim=True), _GRID)
    return torch.cat([means.flatten(1), peaks.flatten(1)], dim=1)


def _phases(steps: Tensor) -> Tensor:
    """Mean step [n, S - 1] at each phase of the period, over the mean of all: [n, 8]."""
    phases = torch.stack([steps[:, phase::_PERIOD].mean(1) for phase in range(_PERIOD)], dim=1)
    return phases / phases.mean(1, keepdim=True).clamp_min(1e-9)


def _both(model: Any, points: Floats) -> Floats:
    """Probabilities [n, 2] of a model whose training fold may hold one of the two labels only."""
    answers = np.zeros((len(points), 2))
    answers[:, model.classes_] = model.predict_proba(points)
    return answers
