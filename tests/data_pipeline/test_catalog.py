"""If these fail, a bit that turned on a disk makes another data set, or rows of an older or a larger one are lost."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.catalog import CATALOG_FILE, Dataset
from data_pipeline.errors import UserError
from data_pipeline.ids import from_hex, sort_order, to_hex
from data_pipeline.ingest.build import build_dataset
from data_pipeline.partitions import PARTITION_FOLDER
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from tests.data_pipeline.raw_images import files_below, folder_source, write_classes


@pytest.fixture
def two_sources(tmp_path: Path) -> list[SourceDeclaration]:
    return [
        folder_source(write_classes(tmp_path / name, {"basophil": 6, "monocyte": 6}, seed), name)
        for name, seed in (("one", 0), ("two", 100))
    ]


def build(root: Path, *sources: SourceDeclaration) -> dict[str, Any]:
    return build_dataset(root, sources, settings=ShardSettings(max_samples=4), progress=False)


@pytest.mark.parametrize("pattern", [CATALOG_FILE, f"{PARTITION_FOLDER}/*.parquet"])
def test_a_changed_bit_is_refused_or_changes_nothing(tiny_dataset: Dataset, tmp_path: Path, pattern: str) -> None:
    """Pages have Parquet's checksums, the metadata of the data set one of its own."""
    numbers, refused = random.Random(0), 0
    shutil.copytree(str(tiny_dataset.root), tmp_path / "data")
    path = next((tmp_path / "data").glob(pattern))
    written = path.read_bytes()
    for _ in range(200):
        changed = bytearray(written)
        # Most of the catalogue's file is its metadata and its footer, behind the pages.
        changed[numbers.randrange(len(changed))] ^= 1 << numbers.randrange(8)
        path.write_bytes(changed)
        try:
            found = Dataset.read_catalog(tmp_path / "data")
            table = found.table
        except UserError:
            refused += 1
            continue
        assert found.metadata == tiny_dataset.metadata
        assert table.equals(tiny_dataset.table)
    assert refused > 100


def test_missing_rows_are_named_when_the_data_set_is_opened(tiny_dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(str(tiny_dataset.root), tmp_path / "data")
    path = next((tmp_path / "data" / PARTITION_FOLDER).iterdir())
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: missing; build, or derive, the data set again"):
        Dataset.open(tmp_path / "data")


def test_adding_a_source_writes_its_own_rows_only(two_sources: list[SourceDeclaration], tmp_path: Path) -> None:
    """Else each of a hundred laboratories would cost as much as all before it."""
    one, two = two_sources
    build(tmp_path / "data", one)
    before = {path: path.stat() for path in (tmp_path / "data" / PARTITION_FOLDER).iterdir()}
    build(tmp_path / "data", two)
    assert {path: path.stat() for path in before} == before
    assert len(list((tmp_path / "data" / PARTITION_FOLDER).iterdir())) == 2


def test_a_data_set_whose_rows_are_in_the_catalogue_itself_is_read_and_grows(
    two_sources: list[SourceDeclaration], tmp_path: Path
) -> None:
    """As format 1 wrote them: all its shards stay."""
    one, two = two_sources
    root = tmp_path / "data"
    shards = build(root, one)["shards_written"]
    new = Dataset.open(root)
    metadata = {name: value for name, value in new.metadata.items() if name != "partitions"} | {"format_version": 1}
    file = io.BytesIO()
    rows = new.table.replace_schema_metadata({b"hemaforge": json.dumps(metadata).encode()})
    pq.write_table(rows, file, compression="zstd", write_page_checksum=True)
    samples = new.samples()
    shutil.rmtree(root / PARTITION_FOLDER)
    (root / CATALOG_FILE).write_bytes(file.getvalue())
    old = Dataset.open(root)
    assert old.samples().equals(samples)
    assert old.table.equals(rows.replace_schema_metadata(None))
    verify_dataset(root, progress=False)
    assert build(root, two)["shards_kept"] == shards
    build(tmp_path / "fresh", one, two)
    assert files_below(root) == files_below(tmp_path / "fresh")


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=24, max_size=24)), max_size=8), st.integers(0, 3))
def test_ids_are_sorted_as_their_texts(parts: list[tuple[int, bytes]], start: int) -> None:
    """Ids that begin alike too; and an Arrow array may be a slice of another."""
    texts = [(bytes(7) + bytes([first]) + rest).hex() for first, rest in parts]
    ids = from_hex(pa.array(texts, pa.string()))
    assert to_hex(ids).to_pylist() == texts
    assert [texts[row] for row in sort_order(ids)] == sorted(texts)
    assert np.array_equal(from_hex(pa.array(texts, pa.string())[start:]), ids[start:])


@pytest.mark.parametrize("text", ["f" * 63, "F" * 64, "g" * 64, "ü" * 32])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        from_hex(pa.array([text]))
