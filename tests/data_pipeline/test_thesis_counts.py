"""If these fail, the twelve types are not the thesis's, or a build that differs from its tables is not told."""

import dataclasses
from pathlib import Path

import pytest

from data_pipeline.catalog import Dataset, from_table, to_table
from data_pipeline.cell_types import BARCELONA_FOLDERS, CELL_TYPES, MUNICH_CODES
from data_pipeline.ingest.build_report import Tally
from data_pipeline.ingest.label_counts import BARCELONA, MUNICH, compare_with_thesis, thesis_counts
from launchers import build_shards
from tests.forged_catalog import full_downloads
from trainer.reports.thesis_tables import printed

TOTALS = {"2": 17092, "3": 18365, "4": 2103, "5": 176, "6": 33178}


def test_every_row_of_table_6_follows_from_the_merges() -> None:
    for labels, types in ((BARCELONA, BARCELONA_FOLDERS), (MUNICH, MUNICH_CODES)):
        assert labels.keys() == types.keys()
    assert {name: str(count) for name, count in thesis_counts().items()} == {
        name: printed("6", name, "images") for name in CELL_TYPES
    }


def test_the_totals_are_the_thesis_totals(tmp_path: Path) -> None:
    rows, differ = compare_with_thesis(from_table(full_downloads(tmp_path, excluded=True).table))
    assert differ == 0
    totals = {table: sum(int(row[2]) for row in rows if row[0] == table) for table in TOTALS}
    assert totals == TOTALS


def test_a_build_that_differs_from_the_thesis_says_in_which_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = full_downloads(tmp_path, excluded=False)
    with pytest.raises(SystemExit, match="1"):
        build_shards._compare(build_shards.BuildConfig(expect="thesis"), dataset.root)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2", "neutrophil", "3329", "3329", "+0"] in lines
    assert ["4", "NGS", "1138", "0", "-1138"] in lines
    assert ["6", "neutrophil", "10744", "11922", "+1178"] in lines


def test_exclusions_are_counted_by_label_and_reason(tiny_dataset: Dataset) -> None:
    rows = from_table(tiny_dataset.table)[:3]
    label = rows[0].source_label
    rows = [dataclasses.replace(row, source_label=label) for row in rows]
    rows[0].exclude("duplicate", "of another")
    assert Tally([to_table(rows)]).labels() == {"phantom": {label: {"images": 3, "kept": 2, "duplicate": 1}}}
