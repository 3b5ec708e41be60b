"""If this fails, a bit that turned on a disk makes another data set, and nobody is told."""

import random
import shutil
from pathlib import Path

from data_pipeline.catalog import CATALOG_FILE, Dataset
from data_pipeline.errors import UserError


def test_a_changed_bit_is_refused_or_changes_nothing(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Pages have Parquet's checksums, the metadata of the data set one of its own."""
    numbers, refused = random.Random(0), 0
    written = (tiny_dataset.root / CATALOG_FILE).read_bytes()
    shutil.copytree(tiny_dataset.root, tmp_path / "data")
    for _ in range(400):
        changed = bytearray(written)
        # Most of the file is its metadata and its footer, behind the pages.
        changed[numbers.randrange(len(changed))] ^= 1 << numbers.randrange(8)
        (tmp_path / "data" / CATALOG_FILE).write_bytes(changed)
        try:
            found = Dataset.read_catalog(tmp_path / "data")
        except UserError:
            refused += 1
            continue
        assert found.metadata == tiny_dataset.metadata
        assert found.table.equals(tiny_dataset.table)
    assert refused > 200
