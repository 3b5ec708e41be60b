"""The rows of a catalogue: a sample's columns, their order, their content hash, their invariants."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ids import ID_BYTES, Ids, from_hex, sort_order
from data_pipeline.ingest.images import HASH_BYTES

# This allocator returns what is freed to the system; Arrow's own keeps half as much again as is in use.
pa.set_memory_pool(pa.system_memory_pool())

SPLITS = ("train", "validation", "test")
FOLDS = 5
_ROWS_AT_ONCE = 65_536


@dataclass(slots=True)
class Sample:
    """One row of the catalogue. shard to crc32 are '' and None for an excluded row."""

    id: str  # SHA-256 (hex) of the raw file, or of it and the region; of a made image, of its stored bytes
    source: str
    domain: str  # the stain
    path: str  # relative to the source's folder, posix; ends in #xywh=X,Y,WIDTH,HEIGHT for a region of a file
    source_label: str
    cell_type: str  # one of CELL_TYPES, '' for unlabelled
    group: str  # <source>/<group>, or the id for a group of its own
    split: str
    fold: int  # 0 to FOLDS - 1
    origin: str = "real"  # real, normalized, synthetic
    parent: str = ""  # id of the image this one was made from
    status: str = "kept"  # kept, excluded
    reason: str = ""  # <kind>: <detail>; of a kept row '', or "corrected label: was <type>" of an expert's correction
    perceptual_hash: bytes | None = None
    shard: str = ""
    key: str = ""  # the sample's name in the tar
    offset: int | None = None  # of the stored image in the tar, bytes
    size: int | None = None  # of the stored image, bytes
    crc32: int | None = None  # of the stored image
    width: int | None = None  # of the raw image, pixels
    height: int | None = None
    microns_per_pixel: float | None = None  # of the raw image

    @property
    def kept(self) -> bool:
        return self.status == "kept"

    def exclude(self, kind: str, detail: str = "") -> None:
        """Take the sample out of the data set; it remains a row, with this reason."""
        self.status = "excluded"
        self.reason = f"{kind}: {detail}" if detail else kind


_TYPES = {
    "fold": pa.int8(),
    "perceptual_hash": pa.binary(HASH_BYTES),
    "offset": pa.int64(),
    "size": pa.int64(),
    "crc32": pa.uint32(),
    "width": pa.int32(),
    "height": pa.int32(),
    "microns_per_pixel": pa.float64(),
}
CATALOG_SCHEMA = pa.schema(
    pa.field(field.name, _TYPES.get(field.name, pa.string()), nullable=field.default is None)
    for field in dataclasses.fields(Sample)
)
# The columns that a training run cannot see are not in the content hash.
_UNSEEN = {"path", "source_label", "status", "reason", "perceptual_hash", "width", "height"}
_CONTENT = [name for name in CATALOG_SCHEMA.names if name not in _UNSEEN]


def to_table(samples: Iterable[Sample]) -> pa.Table:
    """The rows as a table, sorted by source, path, label and id: equal catalogues are equal files."""
    rows = sorted(samples, key=lambda sample: (sample.source, sample.path, sample.source_label, sample.id))
    columns = {name: [getattr(row, name) for row in rows] for name in CATALOG_SCHEMA.names}
    return pa.table(columns, schema=CATALOG_SCHEMA)


def from_table(table: pa.Table) -> list[Sample]:
    """The rows of a catalogue."""
    # One object for equal texts halves the memory: most columns have few different ones, and keys are ids.
    texts: dict[str, str] = {}
    columns = []
    for field in dataclasses.fields(Sample):
        values = table.column(field.name).to_pylist()
        columns.append([texts.setdefault(text, text) for text in values] if field.type == "str" else values)
    return [Sample(*values) for values in zip(*columns, strict=True)]


def content_hash(samples: Iterable[Sample]) -> str:
    """SHA-256 (hex) of what a training run can see of the kept samples; shard names carry the hash of stored bytes."""
    table = to_table(samples)
    return hash_of_columns(lambda names: table.filter(pc.equal(table["status"], "kept")).select(names).to_batches())


def hash_of_columns(kept: Callable[[Sequence[str]], Iterable[pa.RecordBatch]]) -> str:
    """The content hash. kept: columns of the kept rows, in parts, in any order, the same at each call."""
    ids = np.concatenate([np.empty((0, ID_BYTES), np.uint8), *map(ids_of, kept(["id"]))])
    order = sort_order(ids)
    _refuse_repeated(ids[order])
    del ids
    digest = hashlib.sha256()
    for name in _CONTENT:
        column = pa.chunked_array([part.column(0) for part in kept([name])], CATALOG_SCHEMA.field(name).type)
        column = column.cast(pa.large_string()) if pa.types.is_string(column.type) else column
        column = column.combine_chunks()
        digest.update(f"[{json.dumps(name)}, [".encode())
        for start in range(0, len(order), _ROWS_AT_ONCE):
            values = json.dumps(column.take(order[start : start + _ROWS_AT_ONCE]).to_pylist())[1:-1]
            digest.update(f"{', ' if start else ''}{values}".encode())
        digest.update(b"]]")
    return digest.hexdigest()


def ids_of(rows: pa.RecordBatch | pa.Table) -> Ids:
    """The column `id` of some rows."""
    ids = rows.column("id")
    return from_hex(pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) and ids.chunks else ids)


def check_invariants(table: pa.Table, shards: Iterable[str]) -> None:
    """AssertionError when rows contradict each other, which is a bug and never a user's mistake."""
    kept, synthetic = (pc.equal(table[name], value) for name, value in (("status", "kept"), ("origin", "synthetic")))
    stored = pc.is_valid(table["offset"])
    for name in ("size", "crc32", "width", "height"):
        stored = pc.and_(stored, pc.is_valid(table[name]))
    rules = {
        "unknown split": pc.is_in(table["split"], pa.array(SPLITS)),
        "unknown fold": pc.is_in(table["fold"], pa.array(range(FOLDS), pa.int8())),
        "unknown cell type": pc.is_in(table["cell_type"], pa.array(["", *CELL_TYPES])),
        "synthetic, yet held out for scores": pc.or_(pc.invert(synthetic), pc.equal(table["split"], "train")),
        "kept, yet in no shard of the table": pc.or_(
            pc.invert(kept), pc.is_in(table["shard"], pa.array(list(shards), pa.string()))
        ),
        "kept, yet not stored": pc.or_(pc.invert(kept), stored),
        "excluded without a reason": pc.or_(kept, pc.not_equal(table["reason"], "")),
        "excluded, yet in a shard": pc.or_(kept, pc.equal(table["shard"], "")),
    }
    for trouble, holds in rules.items():
        wrong = table.filter(pc.invert(holds)).slice(0, 1).to_pylist()
        assert not wrong, f"{wrong[0]['path']}: {trouble}"
    # A made image is where its parent is, or the test would be trained on. A group of one row is in one split.
    several = table.filter(pc.and_(pc.invert(synthetic), pc.not_equal(table["group"], table["id"])))
    splits = several.group_by(["group", "split"]).aggregate([]).group_by("group").aggregate([("split", "count")])
    assert (splits["split_count"].to_numpy() == 1).all(), "a group in two splits"
    ids = ids_of(table.filter(kept))
    _refuse_repeated(ids[sort_order(ids)])


def _refuse_repeated(ids: Ids) -> None:
    """AssertionError for equal ids among these, which are sorted."""
    assert (ids[1:] != ids[:-1]).any(axis=1).all(), "an id kept twice"
