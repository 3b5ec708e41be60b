"""Evaluations of a classifier that a test has made up."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.metrics.classification import score, trust
from trainer.metrics.evaluation import (
    CalibrationRecord,
    ClassifierEvaluation,
    ScoredCheckpoint,
    ScoredData,
    SeenRecord,
)


def evaluation_of(
    data: ScoredData,
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    groups: Sequence[str],
    cell_types: Sequence[str],
    bootstrap_samples: int = 50,
    **changes: Any,
) -> ClassifierEvaluation:
    """The record of these answers, without a temperature; changes: of its fields."""
    record = ClassifierEvaluation(
        dataset=data,
        checkpoint=ScoredCheckpoint("step-000088", 88, "c0ffee" * 10),
        normalizer=None,
        seen_images=SeenRecord(0, 0, "", []),
        cell_types=list(cell_types),
        not_scored={},
        scores=score(probabilities, labels, groups, cell_types, bootstrap_samples),
        calibration=CalibrationRecord(1.0, 0, "", trust(probabilities, labels, groups, cell_types)),
    )
    return dataclasses.replace(record, **changes)
