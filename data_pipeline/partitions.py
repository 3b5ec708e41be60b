"""The rows of a catalogue on disk: a Parquet file for each source, written and read in parts.

A file's name ends in the hash of its bytes, as a shard's does: a change in one source writes one new file.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.disk import aside, put_in_place
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Root, Store

PARTITION_FOLDER = "catalog"
ROWS_IN_GROUP = 65_536  # read at once


def write_partition(root: Path, source: str, parts: Iterable[pa.Table], schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Write the rows of one source, unless their file is there; returns its entry {name: facts} of the metadata."""
    folder, rows = root / PARTITION_FOLDER, 0
    folder.mkdir(exist_ok=True)
    with aside(folder / f"{source}.parquet") as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer:
            for part in parts:
                writer.write_table(part, ROWS_IN_GROUP)
                rows += part.num_rows
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name, size = f"{source}-{sha256[:16]}.parquet", temporary.stat().st_size
        if (folder / name).is_file() and (folder / name).stat().st_size == size:
            temporary.unlink()
        else:
            put_in_place(temporary, folder / name)
    return {name: {"source": source, "rows": rows, "bytes": size, "sha256": sha256}}


def check_partitions(root: Root, partitions: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError unless each file of rows is in its place and has its size."""
    listed = root.listing(PARTITION_FOLDER) if isinstance(root, Store) else None
    for name, facts in partitions.items():
        path = f"{root}/{PARTITION_FOLDER}/{name}"
        found = os.path.getsize(path) if listed is None and os.path.isfile(path) else (listed or {}).get(name)
        if found != facts["bytes"]:
            what = "missing" if found is None else f"damaged ({found} bytes, not {facts['bytes']})"
            raise UserError(f"{path}: {what}; build, or derive, the data set again")
