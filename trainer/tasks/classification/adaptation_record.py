"""What an adaptation tried, found and advises: adaptation.json, a section of the report and of the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.metrics.bootstrap import Estimate
from trainer.metrics.records import read_record
from trainer.reports.page import Cell, Facts, Section, Table, Text
from trainer.tasks.classification.adaptation_config import Method

FILE = "adaptation.json"
WORDS: Mapping[Method, str] = {
    "as_is": "as is",
    "statistics": "batch-norm statistics",
    "self_training": "self-training",
    "head": "head",
    "all": "all layers",
}


@dataclass(frozen=True)
class MethodScores:
    """Scores of one method on the laboratory's labelled cells; it did not learn from those that it was scored on."""

    method: Method
    balanced_accuracy: Estimate
    sensitivity: dict[str, Estimate]  # type -> of its cells


@dataclass(frozen=True)
class HomeScores:
    """Balanced accuracy on validation images of the run that was adapted."""

    images: int
    before: float
    after: float


@dataclass(frozen=True)
class Adaptation:
    """How a run was adapted."""

    source: str  # folder of the run that was adapted
    source_checkpoint: str  # first digits of its SHA-256
    method: Method
    chosen_by: str
    labelled: dict[str, int]  # type -> labelled cells; types of the classifier without one are there, too
    unlabelled: int
    methods: list[MethodScores]  # empty without labelled cells
    home: HomeScores | None  # None: the data set of the run is not at hand
    home_shown: bool  # training images of the run were shown beside the laboratory's
    advice: list[str]
    command: str


def read_adaptation(run: Path) -> Adaptation | None:
    """The run's adaptation; None for a run that was trained. UserError for a damaged file."""
    return read_record(Adaptation, run / FILE) if (run / FILE).exists() else None


def advise(
    method: Method, scores: Sequence[MethodScores], labelled: Mapping[str, int], to_label: Sequence[str]
) -> list[str]:
    """What to do, one line each: use as is, or adapt; and which types to label more cells of."""
    chosen = next((each for each in scores if each.method == method), None)
    lines = []
    if method == "as_is":
        lines.append("use as is: nothing that was tried was better")
    else:
        lines.append(f"adapt: {WORDS[method]}")
    if chosen is None:
        lines[0] += "; without labelled cells it cannot be known whether this helps: label 10 of each type"
        return lines
    others = [each for each in scores if each.method != method]
    compared = "; ".join(f"{WORDS[each.method]} {each.balanced_accuracy.format(brackets=True)}" for each in others)
    lines[0] += f" (balanced accuracy {chosen.balanced_accuracy.format(brackets=True)}; {compared})"
    if to_label:
        named = (f"{name} ({labelled[name]} labelled{_found(chosen, name)})" for name in to_label)
        lines.append(f"label 10 more of these types, if they occur: {', '.join(named)}")
    return lines


def _found(scores: MethodScores, name: str) -> str:
    value = scores.sensitivity[name].value
    return "" if value is None else f", {100 * value:.0f} % found"


def table_of(adaptation: Adaptation) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the scores of all methods, in per cent."""
    types = [name for name, count in adaptation.labelled.items() if count]
    rows = [
        [
            WORDS[each.method] + (" (chosen)" if each.method == adaptation.method else ""),
            each.balanced_accuracy.format(brackets=True),
            *(each.sensitivity[name].format() for name in types),
        ]
        for each in adaptation.methods
    ]
    return ["method", "balanced accuracy", *(f"{name} ({adaptation.labelled[name]})" for name in types)], rows


def facts_of(adaptation: Adaptation) -> list[tuple[str, str]]:
    """What was adapted, to what, and how it was chosen."""
    cells = ", ".join(f"{count} {name}" for name, count in adaptation.labelled.items() if count)
    facts = [
        ("adapted from", f"{adaptation.source}, checkpoint {adaptation.source_checkpoint}"),
        ("method", f"{WORDS[adaptation.method]}, chosen by {adaptation.chosen_by}"),
        ("labelled cells", cells or "none"),
        ("unlabelled images", str(adaptation.unlabelled)),
    ]
    if adaptation.home is not None:
        home = adaptation.home
        facts.append(
            (
                "validation images of that run",
                f"{home.images}; balanced accuracy {100 * home.before:.1f} before, {100 * home.after:.1f} after",
            )
        )
    return facts


def adaptation_section(adaptation: Adaptation) -> Section:
    """The report's section."""
    columns, rows = table_of(adaptation)
    caption = (
        "Labelled cells that each method had not learned from, by cross-validation; in per cent, with 95 % intervals "
        "over groups; sensitivity of each type (labelled cells)."
    )
    table = [Table(caption, columns, [[Cell(text) for text in row] for row in rows])] if rows else []
    advice = [Text(line, warning=line.startswith("label")) for line in adaptation.advice]
    return Section("Adaptation", "To a laboratory's own images.", [*advice, Facts(facts_of(adaptation)), *table])
