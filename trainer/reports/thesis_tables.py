"""The thesis's numbers, read from thesis_tables.yaml, and the one renderer that shows ours beside them."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from trainer.reports.page import Cell, Table

Record = TypeVar("Record")


@dataclass(frozen=True)
class Column(Generic[Record]):
    """A column of a table that shows ours beside the thesis's."""

    head: str
    ours: Callable[[Record], Cell | str]
    table: str = ""  # the thesis's table; empty: it has no such column
    of: str = ""  # its column there; default: head

    def printed(self, row: str | None) -> str:
        """The thesis's text in a row; empty where it prints nothing."""
        return printed(self.table, row, self.of or self.head)

    def published(self, row: str) -> Cell:
        """The thesis's text, over what of it cannot be right."""
        remarks = _content()["tables"][self.table].get("remarks", {}) if self.table else {}
        return Cell(self.printed(row) or "-", remarks.get(row, {}).get(self.of or self.head, ""))

    def beside(self, record: Record, row: str | None) -> Cell:
        """Ours, over the thesis's text in small type."""
        cell, number = self.ours(record), self.printed(row)
        text, small = (cell, "") if isinstance(cell, str) else (cell.text, cell.small)
        return Cell(text, "; ".join(filter(None, (small, f"thesis {number}" if number else ""))))


def beside_thesis(
    caption: str,
    columns: Sequence[Column[Record]],
    ours: Sequence[tuple[str, str | None, Record]],
    theirs: Sequence[str] = (),
    first: str = "",
) -> Table:
    """A table of the thesis's rows `theirs`, then of ours, each with the thesis's numbers in small type.

    ours: name of the row, the thesis's name of it or None, and its record. first: head of the names' column.
    """
    rows = [[Cell(row), *(column.published(row) for column in columns)] for row in theirs]
    rows += [[Cell(name), *(column.beside(record, row) for column in columns)] for name, row, record in ours]
    return Table(caption, [first, *(column.head for column in columns)], rows)


@functools.cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def columns_of(table: str) -> list[str]:
    """The names of a table's columns."""
    return list(_content()["tables"][table]["columns"])


def rows_of(table: str) -> list[str]:
    """The names of a table's rows."""
    return list(_content()["tables"][table]["rows"])


def printed(table: str, row: str | None, column: str) -> str:
    """The thesis's text in a cell; empty where it prints nothing."""
    found: Mapping[str, Any] = _content()["tables"].get(table, {"columns": [], "rows": {}})
    if row not in found["rows"] or column not in found["columns"]:
        return ""
    return str(found["rows"][row][found["columns"].index(column)])


def thesis_name(model: str) -> str | None:
    """The thesis's name of a model of configs/model; None if it has none."""
    return _content()["names"].get(model)


def sweep_number(kind: str, arm: str, column: str) -> str:
    """The thesis's text about an arm of a sweep of this kind; empty where it prints nothing."""
    if kind != "comparison":
        return printed("58", arm, column) if kind == "ablation" else ""
    bare = re.sub(r"[^a-z0-9]", "", arm.lower())
    return printed("52", next((name for name in rows_of("52") if bare.startswith(name)), None), column)


def sweep_remarks(kind: str) -> list[str]:
    """What cannot be right of the thesis's numbers for sweeps of this kind."""
    return list(_content()["sweeps"].get(kind, ()))
