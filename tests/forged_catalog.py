"""Catalogues changed by hand and made whole again, as a mistake or a fraud would leave them, for tests of audits."""

from collections.abc import Callable
from typing import Any

from data_pipeline.catalog import Dataset, Sample, catalog_bytes, content_hash, from_table
from data_pipeline.shards.build_files import DATASET_FILE, mirror_of
from data_pipeline.shards.store import CATALOG_FILE


def forge(dataset: Dataset, change: Callable[[list[Sample], dict[str, Any]], None]) -> Dataset:
    """Let `change` edit the rows and the metadata of a data set on a disk; the content hash follows."""
    rows, metadata = from_table(dataset.table), dataset.metadata
    change(rows, metadata)
    metadata["content_hash"] = content_hash(rows)
    (dataset.root / CATALOG_FILE).write_bytes(catalog_bytes(rows, metadata))  # type: ignore[operator]
    (dataset.root / DATASET_FILE).write_bytes(mirror_of(metadata))  # type: ignore[operator]
    return Dataset.open(dataset.root)


def first(rows: list[Sample], **wanted: Any) -> Sample:
    """The first kept row with these values."""
    return next(row for row in rows if row.kept and all(getattr(row, key) == value for key, value in wanted.items()))
