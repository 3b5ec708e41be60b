"""From the words that a source uses to the twelve cell types."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_pipeline.cell_types import BARCELONA_FOLDERS, CELL_TYPES, MUNICH_CODES
from data_pipeline.errors import UserError


def _plain(label: str) -> str:
    return " ".join(label.casefold().replace("_", " ").replace("-", " ").split())


_KNOWN: dict[str, str] = {
    **{_plain(folder): cell_type for folder, cell_type in BARCELONA_FOLDERS.items()},
    **{_plain(code): cell_type for code, cell_type in MUNICH_CODES.items()},
    **{_plain(cell_type): cell_type for cell_type in CELL_TYPES},
}


def cell_type_of(label: str, labels: Mapping[str, str]) -> str | None:
    """The cell type of a label: '' for unlabelled, None when nobody knows the word.

    The mapping is asked first, by the exact word. Otherwise cell types, Barcelona's folder names and
    Munich's codes are known, whatever their case, with '_' or '-' for a space.
    """
    if label in labels:
        return labels[label]
    return "" if label == "" else _KNOWN.get(_plain(label))


def refuse_unknown(labels: Iterable[str], where: Path, expected: str) -> None:
    """UserError naming each unknown label, its number of images and the way out, if there is any label."""
    counts = Counter(labels)
    if not counts:
        return
    most = counts.most_common(8)
    named = ", ".join(f"{label!r} ({count} image{'s' * (count != 1)})" for label, count in most)
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    raise UserError(
        f"{where}: unknown label {named}{more}; {expected}, or write a CSV with the columns label,cell_type "
        f"and give it as labels=FILE (an empty cell_type keeps the images unlabelled; "
        f"cell types: {', '.join(CELL_TYPES)})"
    )


def read_label_mapping(path: Path) -> dict[str, str]:
    """Read a label-mapping file: CSV with the columns label,cell_type; UserError names the wrong line."""
    mapping: dict[str, str] = {}
    for line, row in read_csv(path, required=("label", "cell_type")):
        label, written = row["label"], row["cell_type"]
        cell_type = cell_type_of(written, {})
        if cell_type is None:
            raise UserError(
                f"{path}, line {line}: {written!r} is no cell type; use one of {', '.join(CELL_TYPES)}, "
                f"or nothing to keep the images unlabelled"
            )
        if mapping.setdefault(label, cell_type) != cell_type:
            raise UserError(f"{path}, line {line}: {label!r} has another cell type further up; keep one of them")
    return mapping


def read_csv(path: Path, required: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, stripped of blanks, each with its line number.

    UserError when the file is missing, no UTF-8, lacks a required column or has a row of the wrong length.
    """
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            missing = [column for column in required if column not in columns]
            if missing:
                raise UserError(
                    f"{path}: the column {', '.join(missing)} is missing; the first line must name the "
                    f"columns {','.join(required)} (found: {','.join(columns) or 'nothing'})"
                )
            reader.fieldnames = columns
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: expected {len(columns)} values; "
                        f"put quotes round values that hold a comma"
                    )
                rows.append((reader.line_num, {column: value.strip() for column, value in row.items()}))
    except OSError as error:
        raise UserError(f"{path}: cannot read this file ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error}); save it as CSV with commas") from None
    return rows
