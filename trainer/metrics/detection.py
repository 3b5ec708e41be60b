"""Scores of detectors: average precision (torchmetrics, COCO's), and counts per field against the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.sources.annotations import Box
from trainer.metrics.bootstrap import Estimate, Floats, group_weights, interval
from trainer.metrics.evaluation import Evaluation

_RESAMPLES = 64  # each is a COCO evaluation of all fields


@dataclass(frozen=True)
class KindScores:
    """Scores of one kind of cell over fields, with 95 % intervals by bootstrap over fields."""

    cells: int  # annotated
    found: int  # boxes at or above `least_score`
    least_score: float  # boxes below it are not counted
    average_precision_50: Estimate  # at an overlap (IoU) of 0.5, of the 100 surest boxes of a field
    average_precision: Estimate  # mean over overlaps from 0.5 to 0.95
    fields_counted_right: Estimate  # share of fields with as many boxes as cells
    count_error: Estimate  # mean absolute difference of boxes and cells in a field


@dataclass(frozen=True)
class DetectionEvaluation(Evaluation):
    """Scores of a detector on whole fields."""

    kinds: dict[str, KindScores]
    classical: dict[str, KindScores]  # of the finder of nuclei that needs no training, on the same fields


@dataclass(frozen=True)
class ScoredField:
    """A field's boxes: those of a person, and those of a detector."""

    true: Sequence[Box]
    found: Sequence[Box]


def score_kinds(
    fields: Sequence[ScoredField], least_scores: Mapping[str, float], seed: int = 0
) -> dict[str, KindScores]:
    """Scores of each kind that has a `least_score`."""
    return {kind: _score(_of_kind(fields, kind), least, seed) for kind, least in least_scores.items()}


def average_precisions(fields: Sequence[ScoredField], kind: str) -> tuple[float, float]:
    """Average precision of one kind at IoU 0.5, and its mean over 0.5 to 0.95; NaN without a cell of the kind."""
    return _precisions(_of_kind(fields, kind))


def choose_least_score(fields: Sequence[ScoredField], kind: str) -> float:
    """The bound on the score with the least absolute error of the counts; of equally good ones the middle."""
    bounds = np.linspace(0.1, 0.9, 33)
    errors = [np.abs(_differences(_of_kind(fields, kind), bound)).sum() for bound in bounds]
    best = np.flatnonzero(np.array(errors) == min(errors))
    return float(bounds[best[len(best) // 2]])


def _of_kind(fields: Sequence[ScoredField], kind: str) -> list[ScoredField]:
    return [ScoredField(*([box for box in boxes if box.name == kind] for boxes in (f.true, f.found))) for f in fields]


def _score(fields: list[ScoredField], least: float, seed: int) -> KindScores:
    differences, cells = _differences(fields, least), sum(len(field.true) for field in fields)
    weights = np.concatenate(list(group_weights(len(fields), _RESAMPLES, seed)), axis=1)  # [fields, resamples]
    rows = [np.repeat(np.arange(len(fields)), column) for column in weights.T.astype(int)]
    precisions = np.array([_precisions([fields[row] for row in drawn]) for drawn in rows])
    precision_50, precision = _precisions(fields)

    def mean(values: Floats, trials: Floats | None = None) -> Estimate:
        return interval(float(values.mean()), weights.T @ values / len(fields), trials)

    return KindScores(
        cells=cells,
        found=int(differences.sum()) + cells,
        least_score=least,
        average_precision_50=_estimate(precision_50, precisions[:, 0]),
        average_precision=_estimate(precision, precisions[:, 1]),
        fields_counted_right=mean((differences == 0).astype(float), np.array([float(len(fields))])),
        count_error=mean(np.abs(differences)),
    )


def _estimate(value: float, draws: Floats) -> Estimate:
    return Estimate(None) if np.isnan(value) else interval(value, draws, None)


def _differences(fields: Sequence[ScoredField], least: float) -> Floats:
    """Boxes found less cells there are, of each field."""
    return np.array([sum(box.score >= least for box in f.found) - len(f.true) for f in fields], np.float64)


def _precisions(fields: Sequence[ScoredField]) -> tuple[float, float]:
    from torchmetrics.detection import MeanAveragePrecision  # here: a first step need not wait for it

    if not any(field.true for field in fields):
        return float("nan"), float("nan")
    metric = MeanAveragePrecision(sync_on_compute=False)  # one process has all fields
    metric.warn_on_many_detections = False
    metric.update([_tensors(f.found, scored=True) for f in fields], [_tensors(f.true, scored=False) for f in fields])
    found = metric.compute()
    return float(found["map_50"]), float(found["map"])


def _tensors(boxes: Sequence[Box], *, scored: bool) -> dict[str, torch.Tensor]:
    edges = [[box.left, box.top, box.right, box.bottom] for box in boxes]
    found = {
        "boxes": torch.tensor(edges, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
    }
    return found | ({"scores": torch.tensor([box.score for box in boxes])} if scored else {})
