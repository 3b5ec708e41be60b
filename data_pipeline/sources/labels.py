"""From the words that a source uses to the twelve cell types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from data_pipeline.cell_types import BARCELONA_FOLDERS, CELL_TYPES, MUNICH_CODES
from data_pipeline.errors import UserError
from data_pipeline.names import Names, plain, shown
from data_pipeline.sources.csv_files import read_csv

_KNOWN: dict[str, str] = {
    **{plain(folder): cell_type for folder, cell_type in BARCELONA_FOLDERS.items()},
    **{plain(code): cell_type for code, cell_type in MUNICH_CODES.items()},
    **{plain(cell_type): cell_type for cell_type in CELL_TYPES},
}


def cell_type_of(label: str, labels: Mapping[str, str]) -> str | None:
    """The cell type of a label: '' for unlabelled, None when nobody knows the word.

    The mapping is asked first: for the exact word, else for the only cell type of those that people see as equal to
    it (Unicode form, blanks, case, '_' or '-' for a space). Otherwise cell types, Barcelona's folder names and
    Munich's codes are known, compared in the same way.
    """
    if label in labels:
        return labels[label]
    if label == "":
        return ""
    meant = {labels[known] for known in Names(labels).matches(label)}
    if meant:
        return meant.pop() if len(meant) == 1 else None
    return _KNOWN.get(plain(label))


def refuse_unknown(
    labels: Iterable[str], where: Path, expected: str, mapping: Mapping[str, str] = MappingProxyType({})
) -> None:
    """UserError naming each unknown label, its number of images and the way out, if there is any label.

    mapping: the user's, whose words may be meant.
    """
    counts = Counter(labels)
    if not counts:
        return
    most = counts.most_common(8)
    known = Names([*mapping, *CELL_TYPES])
    named = ", ".join(
        f"'{shown(label)}' ({count} image{'s' * (count != 1)}){known.hint(label)}" for label, count in most
    )
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    raise UserError(
        f"{where}: unknown label {named}{more}; {expected}, or write a CSV with the columns label,cell_type "
        f"and give it as labels=FILE (an empty cell_type keeps the images unlabelled; "
        f"cell types: {', '.join(CELL_TYPES)})"
    )


def read_label_mapping(path: Path) -> dict[str, str]:
    """Read a label-mapping file: CSV with the columns label,cell_type; UserError names the wrong line."""
    mapping: dict[str, str] = {}
    for line, row in read_csv(path, required=("label", "cell_type")).rows:
        label, written = row["label"], row["cell_type"]
        cell_type = cell_type_of(written, {})
        if cell_type is None:
            raise UserError(
                f"{path}, line {line}: '{shown(written)}' is no cell type{Names(CELL_TYPES).hint(written)}; "
                f"use one of {', '.join(CELL_TYPES)}, or nothing to keep the images unlabelled"
            )
        if mapping.setdefault(label, cell_type) != cell_type:
            raise UserError(f"{path}, line {line}: '{shown(label)}' has another cell type further up; keep one of them")
    return mapping
