"""If these fail, a report shows another number of the thesis than the thesis prints, or none."""

from trainer.reports.page import Cell
from trainer.reports.thesis_tables import (
    Column,
    beside_thesis,
    columns_of,
    printed,
    rows_of,
    sweep_number,
    thesis_name,
)
from trainer.tasks.generation.thesis import agreement_columns, distance_columns, set_columns

TABLES = ("6", *map(str, range(13, 24)), "52", "58")
MODELS = {
    "14": ("cyclegan", "pix2pix", "w_cyclegan_gp_thesis"),
    "19": ("ac_gan", "cwgan_gp", "info_gan", "dcgan", "cgan", "c_wgan_gp_thesis"),
    "21": ("figr", "fast_gan", "diff_augment", "mine_gan", "c_wgan_gp_thesis", "few_shot_meta_thesis"),
}


def test_every_row_has_a_number_for_each_column_or_says_that_there_is_none() -> None:
    for table in TABLES:
        for row in rows_of(table):
            texts = [printed(table, row, column) for column in columns_of(table)]
            assert any(texts), (table, row)
            assert table in ("52", "58") or all(texts), (table, row)


def test_every_model_that_the_thesis_names_has_its_row() -> None:
    for table, models in MODELS.items():
        assert {thesis_name(model) for model in models} == set(rows_of(table))
    assert thesis_name("stain_student") is None
    assert thesis_name("senet154_ge_thesis") is None  # a classifier, found by the start of its name
    assert sweep_number("comparison", "senet154_ge_thesis", "training time") == "8 h 3 min"
    # What this project changed has no number of the thesis.
    assert sweep_number("comparison", "senet154_ge", "training time") == ""
    assert not any(map(thesis_name, ("w_cyclegan_gp", "c_wgan_gp", "few_shot_meta")))
    assert sweep_number("search", "full", "accuracy") == ""


def test_columns_name_columns_of_the_thesis() -> None:
    """A misspelt one would show no number, silently."""
    columns = [
        *agreement_columns(" (18)"),
        *set_columns("19"),
        *set_columns("21", ("a", "b", "c")),
        *distance_columns(),
    ]
    for column in columns:
        assert (column.of or column.head) in columns_of(column.table), column.head


def test_the_thesis_s_number_stands_below_ours_and_its_own_rows_above() -> None:
    columns = [
        Column("recall", lambda record: Cell(record, "of 9"), "18"),
        Column("F1 (18)", lambda record: record, "18", "F1"),
        Column("ours alone", lambda record: record),
    ]
    table = beside_thesis(
        "caption", columns, [("ac_gan", "AC-GAN", "1.0"), ("own", None, "2.0")], ["CWGAN-GP"], "model"
    )
    assert table.head == ["model", "recall", "F1 (18)", "ours alone"]
    texts = [[(cell.text, cell.small) for cell in row] for row in table.rows]
    assert texts == [
        [("CWGAN-GP", ""), ("87.46", ""), ("88.74", "above the mean of both"), ("-", "")],
        [("ac_gan", ""), ("1.0", "of 9; thesis 92.16"), ("1.0", "thesis 93.55"), ("1.0", "")],
        [("own", ""), ("2.0", "of 9"), ("2.0", ""), ("2.0", "")],
    ]
