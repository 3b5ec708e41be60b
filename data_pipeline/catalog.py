"""The table of all samples, kept and excluded: its columns, its invariants, its file.

`catalog.parquet` is the data set's one commit point. Whatever else is known of the data set (declared
sources, settings, shards, content hash) sits in its key-value metadata, so that one rename replaces it all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
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

# What a training run can see of a sample.
_CONTENT = (
    "id",
    "source",
    "domain",
    "cell_type",
    "group",
    "split",
    "fold",
    "origin",
    "parent",
    "shard",
    "key",
    "offset",
    "size",
    "crc32",
    "microns_per_pixel",
)

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # SHA-256 of the raw file, of a made image as stored; hex
        pa.field("source", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),  # the stain
        pa.field("path", pa.string(), nullable=False),  # relative to the source's folder, posix
        pa.field("source_label", pa.string(), nullable=False),
        pa.field("cell_type", pa.string(), nullable=False),  # one of CELL_TYPES, '' for unlabelled
        pa.field("group", pa.string(), nullable=False),  # <source>/<group>, or the id for a group of its own
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.int8(), nullable=False),  # 0 to FOLDS - 1
        pa.field("origin", pa.string(), nullable=False),  # real, normalized, synthetic
        pa.field("parent", pa.string(), nullable=False),  # id of the image this one was made from, or ''
        pa.field("status", pa.string(), nullable=False),  # kept, excluded
        pa.field("reason", pa.string(), nullable=False),  # <kind>: <detail>, '' when kept
        pa.field("perceptual_hash", pa.binary(HASH_BYTES)),
        pa.field("shard", pa.string(), nullable=False),  # this and the next four: '' and null when excluded
        pa.field("key", pa.string(), nullable=False),  # the sample's name in the tar
        pa.field("offset", pa.int64()),  # of the stored image in the tar, bytes
        pa.field("size", pa.int64()),  # of the stored image, bytes
        pa.field("crc32", pa.uint32()),  # of the stored image
        pa.field("width", pa.int32()),  # of the raw image, as its microns_per_pixel
        pa.field("height", pa.int32()),
        pa.field("microns_per_pixel", pa.float64()),
    ]
)


@dataclass(slots=True)
class Sample:
    """One row of the catalogue; the columns are explained in CATALOG_SCHEMA."""

    id: str
    source: str
    domain: str
    path: str
    source_label: str
    cell_type: str
    group: str
    split: str
    fold: int
    origin: str = "real"
    parent: str = ""
    status: str = "kept"
    reason: str = ""
    perceptual_hash: bytes | None = None
    shard: str = ""
    key: str = ""
    offset: int | None = None
    size: int | None = None
    crc32: int | None = None
    width: int | None = None
    height: int | None = None
    microns_per_pixel: float | None = None

    @property
    def kept(self) -> bool:
        return self.status == "kept"

    def exclude(self, kind: str, detail: str = "") -> None:
        """Take the sample out of the data set; it stays a row, with this reason."""
        self.status = "excluded"
        self.reason = f"{kind}: {detail}" if detail else kind


def to_table(samples: Iterable[Sample]) -> pa.Table:
    """Rows by source, path, label and id: the order does not tell how the catalogue came about."""
    rows = sorted(samples, key=lambda sample: (sample.source, sample.path, sample.source_label, sample.id))
    columns = {name: [getattr(row, name) for row in rows] for name in CATALOG_SCHEMA.names}
    return pa.table(columns, schema=CATALOG_SCHEMA)


def from_table(table: pa.Table) -> list[Sample]:
    """The rows of a catalogue."""
    # Equal texts are one object, or they would take half of the memory: most columns hold few, and keys are ids.
    texts: dict[str, str] = {}
    columns = []
    for field in dataclasses.fields(Sample):
        values = table.column(field.name).to_pylist()
        columns.append([texts.setdefault(text, text) for text in values] if field.type == "str" else values)
    return [Sample(*values) for values in zip(*columns, strict=True)]


def content_hash(samples: Iterable[Sample]) -> str:
    """SHA-256 hex over the kept samples: what a training run can see of a data set, wherever it lies.

    Raw paths and the order of ingest do not count; shard names carry the hash of the stored bytes.
    """
    seen = sorted((row for row in samples if row.kept), key=lambda row: row.id)
    digest = hashlib.sha256()
    for name in _CONTENT:
        digest.update(json.dumps([name, [getattr(row, name) for row in seen]]).encode())
    return digest.hexdigest()


def check_invariants(samples: Sequence[Sample], shards: Iterable[str]) -> None:
    """AssertionError when rows contradict each other: a bug in what made them, never a user's mistake."""
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


def write_catalog(path: Path, samples: Iterable[Sample], metadata: dict[str, Any]) -> None:
    """Write a catalogue file, through to the disk. The same rows and metadata give the same bytes."""
    encoded = json.dumps(with_checksum(metadata), sort_keys=True).encode()  # Parquet's own checksums are of pages
    table = to_table(samples).replace_schema_metadata({_METADATA_KEY: encoded})
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        file.flush()
        os.fsync(file.fileno())


class Dataset:
    """A data set as it lies on a disk or in a store, opened for reading."""

    def __init__(self, root: Root, table: pa.Table, metadata: dict[str, Any], cache: ShardCache | None = None) -> None:
        self.root = root
        self.table = table
        self.metadata = metadata
        self.shard_files = ShardFiles(root, metadata["shards"], cache or ShardCache())
        # Rows of the table, sorted by id; a frame of them is made when it is asked for, of what is asked for.
        kept = np.flatnonzero(pc.equal(table.column("status"), "kept").to_numpy())
        self._kept = kept[pc.sort_indices(table.column("id").take(kept)).to_numpy()]

    @classmethod
    def open(cls, root: str | Root, cache: ShardCache | None = None) -> Dataset:
        """Open a data set; UserError when there is none, or when catalogue or shards are not as committed.

        root: a folder, or the URL of one in a store; cache: where shards of a store are kept, None takes the user's.
        Looks at the size of every shard; `verify_dataset` looks at every byte.
        """
        dataset = cls.read_catalog(root, cache)
        check_shards(dataset.root, dataset.metadata["shards"])
        return dataset

    @classmethod
    def read_catalog(cls, root: str | Root, cache: ShardCache | None = None) -> Dataset:
        """Open a data set without a look at its shards: what `open` does first, enough to mend them."""
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
                f"{path}: written in format {metadata.get('format_version')}, read is {FORMAT_VERSION}; "
                f"build the data set again in a new folder"
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
        """Where it lies, for whoever opens it from elsewhere: an absolute path, or a URL."""
        return str(self.root if isinstance(self.root, Store) else self.root.resolve())

    @property
    def in_store(self) -> bool:
        """Whether any of its shards lies in a store."""
        return self.shard_files.any_in_store

    @property
    def content_hash(self) -> str:
        """Hex; changes with anything that a training run could see."""
        return str(self.metadata["content_hash"])

    def samples(
        self,
        splits: Sequence[str] | None = None,
        domains: Sequence[str] | None = None,
        cell_types: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        folds: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """The kept rows, sorted by id, index from 0; None takes all ('' in cell_types: the unlabelled).

        UserError for a split, domain, cell type or fold that there cannot be.
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
        """Where a shard of the catalogue can be opened; of one on a disk, also its index (`ShardFiles.path`)."""
        return self.shard_files.path(name)

    def attachment_path(self, name: str) -> Path:
        """Where the file lies that was attached under this name; UserError when there is none, or its bytes changed."""
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
        """The stored image of a row (of `samples`: a Series, or a tuple of `itertuples`), still encoded.

        UserError when the shard ends before it (`ShardFiles.read`).
        """
        # By name, not by attribute, for a Series: its .size is its length.
        fields = row._asdict() if hasattr(row, "_asdict") else row
        return self.shard_files.read(str(fields["shard"]), int(fields["offset"]), int(fields["size"]))


def _read_table(root: Root) -> pa.Table:
    """A catalogue's rows, its metadata with them. FileNotFoundError when there is none."""
    if isinstance(root, Store):
        source: Any = pa.BufferReader(root.read(CATALOG_FILE))
    else:
        source = root / CATALOG_FILE
        if not source.is_file():
            raise FileNotFoundError(source)
    return pq.read_table(source, page_checksum_verification=True, partitioning=None)
