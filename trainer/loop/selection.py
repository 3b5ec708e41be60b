"""Which epoch of a training is the best one."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """How the best checkpoint is chosen and when training stops early."""

    score: str  # name of a validation score that is computed after each epoch
    higher_is_better: bool = True
    patience: int | None = None  # epochs without improvement before the stop; None: no early stop
    within: float = 0.0  # a later epoch is chosen even if its score is less than this below the best

    def rank(self, scores: Mapping[str, float]) -> float:
        """The score, negated if lower is better."""
        return scores[self.score] if self.higher_is_better else -scores[self.score]

    def prefers(self, rank: float, best: float) -> bool:
        """Whether an epoch of this rank is chosen after one of the best rank so far. Never one of a NaN score."""
        return rank > best - self.within
