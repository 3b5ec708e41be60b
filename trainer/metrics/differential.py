"""Differential counts: the share of each type among the white cells of a patient, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import binomtest

from data_pipeline.cell_types import CELL_TYPES
from trainer.metrics.bootstrap import Estimate, Floats

# Not leukocytes, or none that can be named: counted, but not in the hundred per cent.
NOT_WHITE = ("erythroblast", "platelet", "smudge cell")
# White cells that CLSI H20-A2 has an observer count on a film, and half of them.
FULL_COUNT, SMALL_COUNT = 200, 100
_DRAWS = 1000
_PRIOR = 0.5  # Jeffreys's, added to each count: what was not seen may still be there


@dataclass(frozen=True)
class TypeCount:
    """Cells of one type, and its share of the white cells."""

    count: int  # cells of the type, as named by the classifier
    share: Estimate  # of all white cells, with Wilson's interval: the counting error alone; none for NOT_WHITE
    corrected: Estimate  # corrected by the confusion matrix, with the classifier's error too; none without a matrix


@dataclass(frozen=True)
class Differential:
    """The differential count of one patient or slide."""

    group: str  # patient or slide
    types: dict[str, TypeCount]  # in the order of CELL_TYPES

    @property
    def white_cells(self) -> int:
        return sum(each.count for name, each in self.types.items() if name not in NOT_WHITE)

    @property
    def warning(self) -> str:
        """What is to be said of so few cells; '' for enough."""
        if self.white_cells < SMALL_COUNT:
            return f"{self.white_cells} white cells, fewer than {SMALL_COUNT}: too few for a differential count"
        if self.white_cells < FULL_COUNT:
            return f"{self.white_cells} white cells, fewer than the {FULL_COUNT} that CLSI H20-A2 has an observer count"
        return ""


def count_types(
    group: str, named: Sequence[str], cell_types: Sequence[str], confusions: Floats | None = None, seed: int = 0
) -> Differential:
    """The differential count of cells by their predicted types.

    confusions [types, types]: counts of a held-out split of the classifier's data set; None: no correction.
    """
    present = [name for name in CELL_TYPES if name in cell_types]
    counts = np.array([named.count(name) for name in cell_types])
    white = np.array([name not in NOT_WHITE for name in cell_types])
    corrected = None if confusions is None else corrected_shares(counts, confusions, white, seed)
    types = {}
    for name in present:
        place = cell_types.index(name)
        total = int(counts[white].sum())
        share = wilson(int(counts[place]), total) if white[place] else Estimate(None)
        adjusted = corrected[place] if corrected is not None and white[place] else Estimate(None)
        types[name] = TypeCount(int(counts[place]), share, adjusted)
    return Differential(group, types)


def wilson(count: int, total: int) -> Estimate:
    """A share with its 95 % interval (Wilson 1927); no value of no cells."""
    if total == 0:
        return Estimate(None)
    found = binomtest(count, total).proportion_ci(method="wilson")
    return Estimate(count / total, float(found.low), float(found.high))


def corrected_shares(
    counts: NDArray[np.integer], confusions: Floats, white: NDArray[np.bool_], seed: int = 0
) -> list[Estimate] | None:
    """Shares of the types among white cells, corrected for a classifier's confusions, with 95 % intervals.

    The shares p of the true types solve counts = p @ confusion rates, all p at or above 0 (least squares). Intervals by
    Bayesian bootstrap (Rubin 1981) of the counts and of each row of the matrix; a type without a cell then has one,
    too. None where there is no white cell, or a type without labelled images.
    """
    if counts[white].sum() == 0 or (confusions.sum(axis=1) == 0).any():
        return None
    draw = np.random.default_rng(seed)
    value = _unmixed(counts / counts.sum(), confusions / confusions.sum(axis=1, keepdims=True), white)
    draws = np.array(
        [
            _unmixed(
                draw.dirichlet(counts + _PRIOR), np.array([draw.dirichlet(row + _PRIOR) for row in confusions]), white
            )
            for _ in range(_DRAWS)
        ]
    )
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return [
        Estimate(*map(float, each)) for each in zip(value, np.minimum(low, value), np.maximum(high, value), strict=True)
    ]


def _unmixed(shares: Floats, rates: Floats, white: NDArray[np.bool_]) -> Floats:
    """True shares [types] among white cells, 0 for others, of predicted `shares` under these confusion rates."""
    true, _ = nnls(rates.T, shares)
    true = np.where(white, true, 0)
    return np.asarray(true / true.sum()) if true.sum() > 0 else np.where(white, 1 / white.sum(), 0)


def beside_reference(share: float | None, low: float, high: float) -> str:
    """'low', 'high' or '' for a share and its reference range, all in per cent."""
    if share is None:
        return ""
    return "low" if share < low else "high" if share > high else ""


Ranges = Mapping[str, tuple[float, float]]  # cell type -> lower and upper reference limit, per cent of white cells
