"""The report of a detector's run: scores of each kind of cell beside the finder that needs no training."""

from collections.abc import Mapping
from pathlib import Path

from trainer.metrics.detection import DetectionEvaluation, KindScores
from trainer.metrics.records import read_record
from trainer.reports.evaluation_section import seen_words
from trainer.reports.page import Cell, Facts, Section, Table, estimate_cell
from trainer.runs.report import write_report

_HEAD = [
    *("kind", "cells", "found", "least score", "AP at IoU 0.5", "AP at 0.5 to 0.95"),
    *("fields counted right", "mean count error"),
]


def write_detector_report(run: Path) -> Path:
    """Write run/report.html; returns its path. UserError where an evaluation is damaged."""
    records = [read_record(DetectionEvaluation, path) for path in sorted((run / "evaluation").glob("*.json"))]
    return write_report(run, [_section(record) for record in records])


def _section(record: DetectionEvaluation) -> Section:
    data = record.dataset
    facts = Facts(
        [
            ("data set", data.path),
            ("content hash", data.content_hash),
            ("split", f"{data.split}, {data.count} fields of {' and '.join(data.domains)}"),
            ("checkpoint", str(record.checkpoint.file)),
            ("unseen", seen_words(record.seen_images)),
        ]
    )
    rows = _rows(record.kinds, "") + _rows(record.classical, ", classical finder")
    caption = (
        "Scores in per cent with 95 % intervals by bootstrap over fields. Average precision (AP) as COCO's; boxes at "
        "or above the least score are counted, which was chosen on validation fields."
    )
    return Section(f"Scores on {data.split}", "Real fields of this split.", [facts, Table(caption, _HEAD, rows)])


def _rows(kinds: Mapping[str, KindScores], words: str) -> list[list[Cell]]:
    return [
        [
            Cell(f"{kind}{words}"),
            Cell(str(scores.cells)),
            Cell(str(scores.found)),
            Cell(f"{scores.least_score:.2f}"),
            estimate_cell(scores.average_precision_50),
            estimate_cell(scores.average_precision),
            estimate_cell(scores.fields_counted_right),
            estimate_cell(scores.count_error, factor=1, digits=2),
        ]
        for kind, scores in kinds.items()
    ]
