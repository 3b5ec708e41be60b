"""An adaptation in the report and in the model card."""

from collections.abc import Mapping

from trainer.reports.page import Cell, Facts, Section, Table, Text
from trainer.tasks.classification.reports.adaptation_record import Adaptation, Method

WORDS: Mapping[Method, str] = {
    "as_is": "as is",
    "statistics": "batch-norm statistics",
    "self_training": "self-training",
    "head": "head",
    "all": "all layers",
}


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
