"""Tables 2 to 6 of the thesis add up under this project's merges: else the twelve types are not the thesis's."""

from collections import Counter

from data_pipeline.cell_types import BARCELONA_FOLDERS, CELL_TYPES, MUNICH_CODES

# Table 2 (all images) and table 5 (removed) of the Mendeley, or Barcelona, set.
BARCELONA = {
    "neutrophil": (3329, 13),
    "eosinophil": (3117, 0),
    "basophil": (1218, 56),
    "lymphocyte": (1214, 1),
    "monocyte": (1420, 2),
    "ig": (2895, 14),
    "erythroblast": (1551, 81),
    "platelet": (2348, 9),
}
# Table 3 (all images) and table 4 (removed) of the Cancer Imaging Archive, or Munich, set.
MUNICH = {
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
# Table 6, in the order of the labels.
MERGED = (1224, 3538, 1547, 2933, 5038, 26, 2583, 3104, 10744, 2339, 87, 15)


def test_every_row_of_table_6_follows_from_the_merges() -> None:
    counts: Counter[str] = Counter()
    for set_counts, names in ((BARCELONA, BARCELONA_FOLDERS), (MUNICH, MUNICH_CODES)):
        assert set_counts.keys() == names.keys()
        for label, (images, removed) in set_counts.items():
            counts[names[label]] += images - removed
    assert tuple(counts[cell_type] for cell_type in CELL_TYPES) == MERGED


def test_the_totals_are_the_thesis_totals() -> None:
    assert [sum(row[column] for row in BARCELONA.values()) for column in (0, 1)] == [17092, 176]
    # Table 4 prints 2,103 as its total.
    assert [sum(row[column] for row in MUNICH.values()) for column in (0, 1)] == [18365, 2103]
    assert sum(MERGED) == 33178
