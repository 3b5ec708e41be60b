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
class Evidence:
    """What the answers of one method to unlabelled images say: how sure and how steady they are, not how right."""

    method: Method
    confidence: float  # mean calibrated probability of the answers
    agreement: float  # share of mirrored and turned views whose answer is that of all views together
    gain: Estimate  # of agreement, against as_is; over groups
    unchanged: float  # share of images with the same answer as by as_is
    answers: dict[str, int]  # type -> images


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
    evidence: list[Evidence]  # empty with labelled cells
    home: HomeScores | None  # None: the data set of the run is not at hand
    home_shown: bool  # training images of the run were shown beside the laboratory's
    advice: list[str]
    command: str


def read_adaptation(run: Path) -> Adaptation | None:
    """The run's adaptation; None for a run that was trained. UserError for a damaged file."""
    return read_record(Adaptation, run / FILE) if (run / FILE).exists() else None


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


def table_of(adaptation: Adaptation) -> tuple[str, list[str], list[list[str]]]:
    """Caption, columns and rows of the scores of all methods, or of the evidence for them; no rows without either."""
    if adaptation.evidence:
        rows = [
            [
                _named(each.method, adaptation),
                *(f"{100 * value:.1f} %" for value in (each.agreement, each.confidence, each.unchanged)),
                each.gain.format(brackets=True),
                ", ".join(f"{count} {name}" for name, count in each.answers.items() if count),
            ]
            for each in adaptation.evidence
        ]
        head = ["method", "views that agree", "confidence", "unchanged", "gain", "answers"]
        caption = (
            "Answers to unlabelled images; gain: of views that agree, in points with its 95 % interval over groups."
        )
        return caption, head, rows
    types = [name for name, count in adaptation.labelled.items() if count]
    rows = [
        [
            _named(each.method, adaptation),
            each.balanced_accuracy.format(brackets=True),
            *(each.sensitivity[name].format() for name in types),
        ]
        for each in adaptation.methods
    ]
    caption = (
        "Labelled cells that each method had not learned from, in per cent, with 95 % intervals over groups; "
        "sensitivity of each type (labelled cells)."
    )
    return caption, ["method", "balanced accuracy", *(f"{name} ({adaptation.labelled[name]})" for name in types)], rows


def _named(method: Method, adaptation: Adaptation) -> str:
    return WORDS[method] + (" (chosen)" if method == adaptation.method else "")


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
    caption, columns, rows = table_of(adaptation)
    table = [Table(caption, columns, [[Cell(text) for text in row] for row in rows])] if rows else []
    advice = [Text(line, warning=line.startswith("label")) for line in adaptation.advice]
    return Section("Adaptation", "To a laboratory's own images.", [*advice, Facts(facts_of(adaptation)), *table])
