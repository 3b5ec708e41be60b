"""A data set opened for reading: its catalogue, the table of all samples, kept and excluded, and its files.

The rows are in a Parquet file for each source (`partitions.py`). `catalog.parquet` lists these files; the rest of what
is known (declared sources, settings, shards, content hash) is in its key-value metadata. Replacing it commits a data
set: one rename replaces everything.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from data_pipeline.ids import ID_BYTES, sort_order
from data_pipeline.names import Names
from data_pipeline.partitions import PARTITION_FOLDER, check_partitions, write_partition
from data_pipeline.parts import PART
from data_pipeline.sample import (
    CATALOG_SCHEMA,
    FOLDS,
    SPLITS,
    Sample,
    check_invariants,
    content_hash,
    from_table,
    ids_of,
    to_table,
)
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.location import ShardFiles, check_shards
from data_pipeline.shards.store import CATALOG_FILE, Root, Store, no_dataset, root_of

__all__ = [
    "CATALOG_FILE",
    "CATALOG_SCHEMA",
    "FOLDS",
    "FORMAT_VERSION",
    "SPLITS",
    "Dataset",
    "Sample",
    "catalog_bytes",
    "check_invariants",
    "content_hash",
    "from_table",
    "to_table",
    "write_rows",
]

FORMAT_VERSION = 2
_READABLE = (1, 2)  # 1: all rows in catalog.parquet itself
_METADATA_KEY = b"hemaforge"
_PARTITION_SCHEMA = pa.schema(
    {"file": pa.string(), "source": pa.string(), "rows": pa.int64(), "bytes": pa.int64(), "sha256": pa.string()}
)


def catalog_bytes(metadata: dict[str, Any]) -> bytes:
    """The catalogue's own file. The same metadata give the same bytes."""
    encoded = json.dumps(with_checksum(metadata), sort_keys=True).encode()
    files = [{"file": name, **facts} for name, facts in sorted(metadata["partitions"].items())]
    file = io.BytesIO()
    table = pa.Table.from_pylist(files, _PARTITION_SCHEMA).replace_schema_metadata({_METADATA_KEY: encoded})
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file.getvalue()


def write_rows(root: Path, samples: Iterable[Sample]) -> dict[str, dict[str, Any]]:
    """Write the partitions of these rows; returns their entries of the metadata."""
    table, entries = to_table(samples), dict[str, dict[str, Any]]()
    for source in table["source"].unique().to_pylist():
        entries |= write_partition(root, source, [table.filter(pc.equal(table["source"], source))], CATALOG_SCHEMA)
    return entries


class Dataset:
    """A data set on a disk or in a store, opened for reading."""

    def __init__(self, root: Root, metadata: dict[str, Any], cache: ShardCache | None = None) -> None:
        self.root = root
        self.metadata = metadata
        self.shard_files = ShardFiles(root, metadata["shards"], cache or ShardCache())

    @classmethod
    def open(cls, root: str | Root, cache: ShardCache | None = None) -> Dataset:
        """Open a data set; UserError when there is none, or its catalogue or the size of a shard is not as committed.

        root: a folder, or its URL in a store; cache: of a store's shards, None for the user's own. `verify_dataset`
        reads every byte.
        """
        dataset = cls.read_catalog(root, cache)
        check_partitions(dataset.root, dataset.metadata.get("partitions", {}))
        check_shards(dataset.root, dataset.metadata["shards"])
        return dataset

    @classmethod
    def read_catalog(cls, root: str | Root, cache: ShardCache | None = None) -> Dataset:
        """Open a data set without checking its rows and shards."""
        root = root_of(root)
        path = f"{root}/{CATALOG_FILE}"
        with _damage_is_told(path):
            try:
                schema = pq.read_schema(_catalog_file(root))
            except FileNotFoundError:
                raise no_dataset(root) from None
            metadata = checked(json.loads((schema.metadata or {})[_METADATA_KEY]))
        if metadata.get("format_version") not in _READABLE:
            raise UserError(
                f"{path}: written in format {metadata.get('format_version')}, this version reads formats "
                f"{' and '.join(map(str, _READABLE))}; build the data set again in a new folder"
            )
        return cls(root, metadata, cache)

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
        """SHA-256 (hex) of the kept samples as a training run sees them (see sample.content_hash)."""
        return str(self.metadata["content_hash"])

    @property
    def table(self) -> pa.Table:
        """All rows, excluded ones too, sorted by source, path, label and id; read anew at each call."""
        return pa.Table.from_batches(self.batches(CATALOG_SCHEMA.names), CATALOG_SCHEMA)

    @property
    def row_count(self) -> int:
        """Number of rows, excluded ones too."""
        if "partitions" in self.metadata:
            return sum(int(facts["rows"]) for facts in self.metadata["partitions"].values())
        return int(pq.read_metadata(_catalog_file(self.root)).num_rows)

    def batches(self, columns: Sequence[str], source: str | None = None) -> Iterator[pa.RecordBatch]:
        """These columns of the rows of one source, or of all, in parts. UserError when a file is damaged."""
        partitions: dict[str, dict[str, Any]] = self.metadata.get("partitions", {})
        names = sorted(partitions, key=lambda name: str(partitions[name]["source"]))
        wanted = [name for name in names if source in (None, partitions[name]["source"])]
        older = "partitions" not in self.metadata  # format 1: the rows are in the catalogue's own file
        needed = list(dict.fromkeys([*columns, "source"] if older and source else columns))
        for name in [CATALOG_FILE] if older else wanted:
            path = f"{self.root}/{name}" if older else f"{self.root}/{PARTITION_FOLDER}/{name}"
            with _damage_is_told(path):
                opened = _catalog_file(self.root) if older else self._partition(name)
                with pq.ParquetFile(opened, page_checksum_verification=True) as file:
                    if not file.schema_arrow.remove_metadata().equals(CATALOG_SCHEMA):
                        raise ValueError("the columns are not those of a catalogue")
                    for part in file.iter_batches(PART, columns=needed, use_threads=False):
                        here = part.filter(pc.equal(part["source"], source)) if older and source else part
                        yield here.select(list(columns))

    def _partition(self, name: str) -> pa.NativeFile:
        """A partition's file, opened; one of a store is fetched into the cache."""
        if not isinstance(self.root, Store):
            return pa.OSFile(str(self.root / PARTITION_FOLDER / name))
        while True:
            with suppress(FileNotFoundError):  # removed by another process to make room
                facts = self.metadata["partitions"][name]
                return pa.OSFile(str(self.shard_files.cache.fetch(self.root, PARTITION_FOLDER, name, facts)))

    def selected(
        self,
        columns: Sequence[str],
        *,
        source: str | None = None,
        splits: Sequence[str] | None = None,
        domains: Sequence[str] | None = None,
        cell_types: Sequence[str] | None = None,
        folds: Sequence[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """These columns of the kept rows that `samples` finds, of one source or all, in the order of `batches`."""
        asked = {"split": splits, "domain": domains, "cell_type": cell_types, "fold": folds}
        wanted = {name: list(values) for name, values in asked.items() if values is not None}
        for part in self.batches(list(dict.fromkeys([*columns, "status", *wanted])), source):
            chosen = pc.equal(part["status"], "kept")
            for name, values in wanted.items():
                chosen = pc.and_(chosen, pc.is_in(part[name], pa.array(values, part[name].type)))
            yield part.filter(chosen).select(list(columns))

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
        self.refuse_unknown(splits=splits, domains=domains, cell_types=cell_types, folds=folds)
        names = CATALOG_SCHEMA.names if columns is None else list(columns)
        ids, parts = [np.empty((0, ID_BYTES), np.uint8)], []
        chosen = list(dict.fromkeys([*names, "id"]))
        for part in self.selected(chosen, splits=splits, domains=domains, cell_types=cell_types, folds=folds):
            ids.append(ids_of(part))
            parts.append(part.select(names))
        schema = pa.schema(
            # Offsets of 64 bits: the ids of 34 million rows are 2 GiB of text.
            field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
            for field in map(CATALOG_SCHEMA.field, names)
        )
        table = pa.Table.from_batches(parts, pa.schema(map(CATALOG_SCHEMA.field, names))).cast(schema)
        return table.take(sort_order(np.concatenate(ids))).to_pandas()

    def refuse_unknown(
        self,
        splits: Sequence[str] | None = None,
        domains: Sequence[str] | None = None,
        cell_types: Sequence[str] | None = None,
        folds: Sequence[int] | None = None,
    ) -> None:
        """UserError for a split, domain, cell type or fold that does not exist."""
        if domains is not None and not isinstance(domains, str):
            refuse_unknown_domains(domains, self.domains(), self.root)
        asked: dict[str, tuple[Sequence[Any] | None, Sequence[Any]]] = {
            "split": (splits, SPLITS),
            "domain": (domains, domains or ()),
            "cell type": (cell_types, ("", *CELL_TYPES)),
            "fold": (folds, range(FOLDS)),
        }
        for kind, (wanted, present) in asked.items():
            if isinstance(wanted, str):
                raise TypeError(f"{kind}: a sequence of names, not {wanted!r}")
            unknown = [name for name in wanted or () if name not in present]
            if unknown:
                there = [str(name) for name in present if name != ""]
                hint = Names(there).hint(str(unknown[0]))
                raise UserError(f"{self.root}: no {kind} {unknown[0]!r} here{hint}; use one of {', '.join(there)}")

    def domains(self) -> list[str]:
        """The domains of the kept rows, sorted."""
        return sorted({name for part in self.selected(["domain"]) for name in part["domain"].unique().to_pylist()})

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


def _catalog_file(root: Root) -> pa.NativeFile:
    """The catalogue's own file, opened; FileNotFoundError when there is none."""
    if isinstance(root, Store):
        return pa.BufferReader(root.read(CATALOG_FILE))
    if not (root / CATALOG_FILE).is_file():
        raise FileNotFoundError(root / CATALOG_FILE)
    return pa.OSFile(str(root / CATALOG_FILE))


@contextmanager
def _damage_is_told(path: str) -> Iterator[None]:
    """UserError, one line, for a file of a catalogue that cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{path}: not there: the data set was built again since it was opened, or the file was deleted; start "
            "again, or build the data set again"
        ) from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged ({why}); delete it and build the data set again") from None
