"""The table of all samples of a data set, kept and excluded: its columns, its invariants, its file.

Replacing `catalog.parquet` commits a data set. The rest of what is known (declared sources, settings, shards, content
hash) is in the file's key-value metadata, so that one rename replaces everything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.attachments import ATTACHMENT_FOLDER, check_attachment
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import checked, with_checksum
from data_pipeline.domains import refuse_unknown_domains
from data_pipeline.errors import UserError
from data_pipeline.ingest.images import HASH_BYTES
from data_pipeline.names import Names
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.location import ShardFiles, check_shards
from data_pipeline.shards.store import CATALOG_FILE, Root, Store, no_dataset, root_of

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
FOLDS = 5
_METADATA_KEY = b"hemaforge"


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
    seen = sorted((row for row in samples if row.kept), key=lambda row: row.id)
    digest = hashlib.sha256()
    for name in _CONTENT:
        digest.update(json.dumps([name, [getattr(row, name) for row in seen]]).encode())
    return digest.hexdigest()


def check_invariants(samples: Sequence[Sample], shards: Iterable[str]) -> None:
    """AssertionError when rows contradict each other, which is a bug and never a user's mistake."""
    known_shards = set(shards)
    split_of_group: dict[str, str] = {}
    ids: set[str] = set()
    for row in samples:
        assert row.split in SPLITS, f"{row.path}: split {row.split!r}"
        assert 0 <= row.fold < FOLDS, f"{row.path}: fold {row.fold}"
        assert row.cell_type in ("", *CELL_TYPES), f"{row.path}: cell type {row.cell_type!r}"
        assert row.split == "train" or row.origin != "synthetic", f"{row.path}: synthetic, yet held out for scores"
        if row.origin != "synthetic":  # a made image is where its parent is, or the test would be trained on
            split = split_of_group.setdefault(row.group, row.split)
            assert split == row.split, f"group {row.group} in two splits"
        if row.kept:
            assert row.id not in ids, f"{row.id} kept twice"
            assert row.shard in known_shards, f"{row.path}: shard {row.shard} is not in the shard table"
            stored = (row.offset, row.size, row.crc32, row.width, row.height)
            assert None not in stored, f"{row.path}: kept, yet not stored"
            ids.add(row.id)
        else:
            assert row.reason, f"{row.path}: excluded without a reason"
            assert not row.shard, f"{row.path}: excluded, yet in {row.shard}"


def catalog_bytes(samples: Iterable[Sample], metadata: dict[str, Any]) -> bytes:
    """A catalogue's file. The same rows and metadata give the same bytes."""
    encoded = json.dumps(with_checksum(metadata), sort_keys=True).encode()  # Parquet's own checksums are of pages
    table = to_table(samples).replace_schema_metadata({_METADATA_KEY: encoded})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file.getvalue()


class Dataset:
    """A data set on a disk or in a store, opened for reading."""

    def __init__(self, root: Root, table: pa.Table, metadata: dict[str, Any], cache: ShardCache | None = None) -> None:
        self.root = root
        self.table = table
        self.metadata = metadata
        self.shard_files = ShardFiles(root, metadata["shards"], cache or ShardCache())
        # Row numbers of the kept samples, sorted by id.
        kept = np.flatnonzero(pc.equal(table.column("status"), "kept").to_numpy())
        self._kept = kept[pc.sort_indices(table.column("id").take(kept)).to_numpy()]

    @classmethod
    def open(cls, root: str | Root, cache: ShardCache | None = None) -> Dataset:
        """Open a data set; UserError when there is none, or its catalogue or the size of a shard is not as committed.

        root: a folder, or its URL in a store; cache: of a store's shards, None for the user's own. `verify_dataset`
        reads every byte.
        """
        dataset = cls.read_catalog(root, cache)
        check_shards(dataset.root, dataset.metadata["shards"])
        return dataset

    @classmethod
    def read_catalog(cls, root: str | Root, cache: ShardCache | None = None) -> Dataset:
        """Open a data set without checking its shards."""
        root = root_of(root)
        path = f"{root}/{CATALOG_FILE}"
        try:
            table = _read_table(root)
            metadata = checked(json.loads((table.schema.metadata or {})[_METADATA_KEY]))
            table = table.replace_schema_metadata(None)
        except FileNotFoundError:
            raise no_dataset(root) from None
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: damaged ({why}); delete it and build the data set again") from None
        if metadata.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path}: written in format {metadata.get('format_version')}, this version reads format "
                f"{FORMAT_VERSION}; build the data set again in a new folder"
            )
        if not table.schema.equals(CATALOG_SCHEMA):
            raise UserError(f"{path}: the columns are not those of a catalogue; build the data set again")
        return cls(root, table, metadata, cache)

    @staticmethod
    def is_at(root: Root) -> bool:
        """Whether there is a data set, whole or damaged."""
        if isinstance(root, Store):
            return CATALOG_FILE in root.listing()
        return (root / CATALOG_FILE).is_file()

    @property
    def address(self) -> str:
        """Its absolute path, or its URL."""
        return str(self.root if isinstance(self.root, Store) else self.root.resolve())

    @property
    def in_store(self) -> bool:
        """Whether any of its shards lies in a store."""
        return self.shard_files.any_in_store

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of what a training run can see (`content_hash`)."""
        return str(self.metadata["content_hash"])

    def samples(
        self,
        splits: Sequence[str] | None = None,
        domains: Sequence[str] | None = None,
        cell_types: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        folds: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """The kept rows, sorted by id; None takes all ('' in cell_types: unlabelled images).

        UserError for a split, domain, cell type or fold that does not exist.
        """
        rows = self._kept
        domains_here = sorted(self.table.column("domain").take(rows).unique().to_pylist())
        present: dict[str, Sequence[Any]] = {
            "split": SPLITS,
            "domain": domains_here,
            "cell_type": ("", *CELL_TYPES),
            "fold": range(FOLDS),
        }
        asked = {"split": splits, "domain": domains, "cell_type": cell_types, "fold": folds}
        if domains is not None and not isinstance(domains, str):
            refuse_unknown_domains(domains, domains_here, self.root)
        for column, wanted in asked.items():
            if wanted is None:
                continue
            if isinstance(wanted, str):
                raise TypeError(f"{column}: a sequence of names, not {wanted!r}")
            unknown = [name for name in wanted if name not in present[column]]
            if unknown:
                there = [str(name) for name in present[column] if name != ""]
                kind, hint = column.replace("_", " "), Names(there).hint(str(unknown[0]))
                raise UserError(f"{self.root}: no {kind} {unknown[0]!r} here{hint}; use one of {', '.join(there)}")
            values = self.table.column(column).take(rows)
            rows = rows[pc.is_in(values, pa.array(list(wanted), values.type)).to_numpy()]
        table = self.table if columns is None else self.table.select(list(columns))
        return table.take(rows).to_pandas()

    def shard_path(self, name: str) -> Path:
        """Local path of a shard (`ShardFiles.path`), or of the index of a shard that is not in a store."""
        return self.shard_files.path(name)

    def attachment_path(self, name: str) -> Path:
        """Local path of an attached file; UserError when there is none of this name, or its bytes changed."""
        attachments = self.metadata.get("attachments", {})
        if name not in attachments:
            raise UserError(
                f"{self.root}: no {name} goes with this data set; it has: {', '.join(attachments) or 'none'}"
            )
        if isinstance(self.root, Store):
            return self.shard_files.cache.fetch(
                self.root, ATTACHMENT_FOLDER, attachments[name]["file"], attachments[name]
            )
        return check_attachment(self.root, attachments[name])

    def read_encoded(self, row: Any) -> bytes:
        """The encoded image of a row of `samples`, a Series or a tuple of `itertuples`; raises as `ShardFiles.read`."""
        # By name, not by attribute: a Series' .size is its length.
        fields = row._asdict() if hasattr(row, "_asdict") else row
        return self.shard_files.read(str(fields["shard"]), int(fields["offset"]), int(fields["size"]))


def _read_table(root: Root) -> pa.Table:
    """The catalogue's table with its metadata; FileNotFoundError when there is none."""
    if isinstance(root, Path) and not (root / CATALOG_FILE).is_file():
        raise FileNotFoundError(root / CATALOG_FILE)
    source = pa.BufferReader(root.read(CATALOG_FILE)) if isinstance(root, Store) else root / CATALOG_FILE
    return pq.read_table(source, page_checksum_verification=True, partitioning=None)
