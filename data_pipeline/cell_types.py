"""The twelve cell types of the thesis (table 6, figures 55-57) and how the two public sets name them."""

from collections.abc import Iterable
from typing import Literal

from data_pipeline.names import plain

CELL_TYPES: tuple[str, ...] = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monoblast",
    "monocyte",
    "myeloblast",
    "neutrophil",
    "platelet",
    "promyelocyte",
    "smudge cell",
)

PromyelocyteReading = Literal["immature granulocyte", "promyelocyte"]

# Folder -> type (table 2). The file name's prefix is the finer source label.
BARCELONA_FOLDERS: dict[str, str] = {
    "basophil": "basophil",
    "eosinophil": "eosinophil",
    "erythroblast": "erythroblast",
    "ig": "immature granulocyte",
    "lymphocyte": "lymphocyte",
    "monocyte": "monocyte",
    "neutrophil": "neutrophil",
    "platelet": "platelet",
}
# The prefix under `ig` whose type the thesis and the merged class list read differently.
BARCELONA_PROMYELOCYTE = "PMY"

# Folder code -> type (table 3, merged as in table 6).
MUNICH_CODES: dict[str, str] = {
    "BAS": "basophil",
    "EBO": "erythroblast",
    "EOS": "eosinophil",
    "KSC": "smudge cell",
    "LYA": "lymphocyte",
    "LYT": "lymphocyte",
    "MMZ": "immature granulocyte",
    "MOB": "monoblast",
    "MON": "monocyte",
    "MYB": "immature granulocyte",
    "MYO": "myeloblast",
    "NGB": "neutrophil",
    "NGS": "neutrophil",
    "PMB": "promyelocyte",
    "PMO": "promyelocyte",
}


def in_our_words(names: Iterable[str]) -> list[str]:
    """Cell types as a user writes them (`plain` form) by their own names; other names unchanged."""
    known = {plain(cell_type): cell_type for cell_type in CELL_TYPES}
    return [known.get(plain(name), name) for name in names]
