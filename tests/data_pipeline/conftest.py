"""What the tests of derived data sets start from."""

import shutil
from pathlib import Path

import pytest

from data_pipeline.catalog import Dataset


@pytest.fixture
def parent(tiny_dataset: Dataset, tmp_path: Path) -> Dataset:
    """A data set of this test's own, that may be moved and rebuilt."""
    shutil.copytree(tiny_dataset.root, tmp_path / "parent")
    return Dataset.open(tmp_path / "parent")


@pytest.fixture
def normaliser(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(200)))
    return path
