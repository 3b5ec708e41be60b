"""How the images of a data set, before and after exclusion, differ from the thesis's tables 2 to 6."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from data_pipeline.catalog import Sample
from data_pipeline.cell_types import BARCELONA_FOLDERS, CELL_TYPES, MUNICH_CODES

# Folder -> (images of the download, images that the thesis removed).
BARCELONA = {  # tables 2 and 5
    "neutrophil": (3329, 13),
    "eosinophil": (3117, 0),
    "basophil": (1218, 56),
    "lymphocyte": (1214, 1),
    "monocyte": (1420, 2),
    "ig": (2895, 14),
    "erythroblast": (1551, 81),
    "platelet": (2348, 9),
}
MUNICH = {  # tables 3 and 4
    "BAS": (79, 17),
    "EBO": (78, 1),
    "EOS": (424, 3),
    "KSC": (15, 0),
    "LYA": (11, 4),
    "LYT": (3937, 119),
    "MOB": (26, 0),
    "MON": (1789, 624),
    "MYB": (42, 3),
    "MYO": (3268, 164),
    "NGB": (109, 27),
    "NGS": (8484, 1138),
    "PMB": (18, 0),
    "PMO": (70, 1),
    "MMZ": (15, 2),
}
_SETS = {"barcelona": ("2", "5", BARCELONA), "munich": ("3", "4", MUNICH)}


def thesis_counts() -> dict[str, int]:
    """Table 6: images of each type after the removals, which follow from tables 2 to 5 and the merges."""
    counts: Counter[str] = Counter()
    for labels, types in ((BARCELONA, BARCELONA_FOLDERS), (MUNICH, MUNICH_CODES)):
        for label, (images, removed) in labels.items():
            counts[types[label]] += images - removed
    return {cell_type: counts[cell_type] for cell_type in CELL_TYPES}


def compare_with_thesis(samples: Sequence[Sample]) -> tuple[list[list[str]], int]:
    """Rows [table, label, thesis, here, difference] of tables 2 to 6, and the number that differ.

    A label of the public sets is a folder. Litter, which the thesis does not count, is no image of tables 2 and 3.
    """
    found: dict[str, dict[str, Counter[str]]] = {name: defaultdict(Counter) for name in _SETS}
    types: Counter[str] = Counter()
    for row in samples:
        if row.source in found:
            label = row.path.partition("/")[0]
            if row.kept or row.width is not None:
                found[row.source][label].update(("images", "kept" if row.kept else "removed"))
            types[row.cell_type] += row.kept
    rows = []
    for source, (images, removed, labels) in _SETS.items():
        for table, place, kind in ((images, 0, "images"), (removed, 1, "removed")):
            rows += [(table, label, numbers[place], found[source][label][kind]) for label, numbers in labels.items()]
    rows += [("6", cell_type, number, types[cell_type]) for cell_type, number in thesis_counts().items()]
    ordered = sorted(rows, key=lambda row: row[0])
    lines = [[table, label, str(theirs), str(ours), f"{ours - theirs:+d}"] for table, label, theirs, ours in ordered]
    return lines, sum(theirs != ours for _, _, theirs, ours in rows)
