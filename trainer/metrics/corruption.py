"""Scores of a classifier on corrupted images, by kind and severity."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CorruptionScores:
    """Scores on images of one kind and severity of corruption."""

    kind: str
    severity: int  # 1: mild
    accuracy: float
    balanced_accuracy: float


@dataclass(frozen=True)
class CorruptionRecord:
    """Scores on every kind and severity, and their means."""

    accuracy: float  # mean over all kinds and severities
    balanced_accuracy: float  # mean over all kinds and severities
    scores: list[CorruptionScores]

    @classmethod
    def of(cls, scores: Sequence[CorruptionScores]) -> "CorruptionRecord":
        """The record of these scores."""
        count = len(scores)
        means = (sum(each.accuracy for each in scores) / count, sum(each.balanced_accuracy for each in scores) / count)
        return cls(*means, list(scores))

    @property
    def by_kind(self) -> dict[str, list[CorruptionScores]]:
        """The scores of each kind, by rising severity."""
        kinds: dict[str, list[CorruptionScores]] = {}
        for each in self.scores:
            kinds.setdefault(each.kind, []).append(each)
        return kinds


def format_corruptions(record: CorruptionRecord) -> str:
    """A table for the console: balanced accuracy in per cent, a line for each kind."""
    lines = [
        f"  {kind:<16}" + "".join(f"{100 * each.balanced_accuracy:7.1f}" for each in severities)
        for kind, severities in record.by_kind.items()
    ]
    mean = f"  {'mean':<16}{100 * record.balanced_accuracy:7.1f}   (accuracy {100 * record.accuracy:.1f})"
    return "\n".join(["balanced accuracy on corrupted images, by rising severity, %", *lines, mean])
