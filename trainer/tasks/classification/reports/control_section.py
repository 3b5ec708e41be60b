"""The section of a run's report on the thesis's protocol."""

from trainer.metrics.measures import shown
from trainer.reports.evaluation_section import score_cells
from trainer.reports.page import Block, Cell, Section, Table, Text
from trainer.tasks.classification.reports.control_record import WARNING, ControlRecord, words_of


def control_section(record: ControlRecord) -> Section:
    """The control's numbers, over all types and of each."""
    scores, over_all, of_type = record.scores, shown("headline"), shown("types")
    whole = [Cell(str(scores.count)), *score_cells(scores.overall, over_all)]
    rows = [
        [Cell(name), Cell(str(row.count)), *score_cells(row.measures, of_type)] for name, row in scores.per_type.items()
    ]
    head = ["its test images", *(f"CONTROL: {each.label}" for each in over_all)]
    head_of_types = ["type", "its test images", *(f"CONTROL: {each.name.replace('_', ' ')}" for each in of_type)]
    blocks: list[Block] = [
        Text(WARNING, warning=True),
        Table("In per cent, 95 % intervals below, which take each image for independent.", head, [whole]),
        Table("Each type against the rest.", head_of_types, rows),
    ]
    return Section("The thesis's protocol, a control", f"{words_of(record)}.", blocks)
