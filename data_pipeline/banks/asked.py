"""How many generated images of each type validation images ask for: the answers that a balanced data set is made by."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.learned_images import LearnedImages


@dataclass(frozen=True)
class Tried:
    """So many generated images of one type, tried on validation images."""

    amount: int
    gain: float  # fall of the log loss by the amount, every type weighing the same
    error: float  # standard error of the gain over groups of images
    sensitivity: float | None  # of the type; None without a validation image of it


@dataclass(frozen=True)
class Asked:
    """What was tried for one type, none first, and what was asked for."""

    cell_type: str
    real: int  # training images
    tried: tuple[Tried, ...]
    amount: int


@dataclass(frozen=True)
class Verdict:
    """The answers for all types, and the images that they depend on."""

    types: tuple[Asked, ...]
    learned: LearnedImages

    def amounts(self) -> dict[str, int]:
        """Generated images asked for, by type."""
        return {each.cell_type: each.amount for each in self.types}

    def as_record(self) -> list[dict[str, Any]]:
        """Part of the data set's record of what made it."""
        return [asdict(each) for each in self.types]


def format_asked(types: Sequence[Asked]) -> str:
    """The answers as a table: a line for each amount that was tried."""
    width = max([len("generated images"), *(len(each.cell_type) for each in types)])
    lines = [f"{'generated images':{width}} {'real':>6} {'tried':>6} {'fall of log loss':>19} {'sensitivity':>12}"]
    for each in types:
        for tried in each.tried:
            seen = "-" if tried.sensitivity is None else f"{tried.sensitivity:.1%}"
            gain = f"{tried.gain:.4f} ± {tried.error:.4f}" if tried.amount else "-"
            asked = "  asked for" if tried.amount == each.amount else ""
            lines.append(f"{each.cell_type:{width}} {each.real:6} {tried.amount:6} {gain:>19} {seen:>12}{asked}")
    return "\n".join(lines)
