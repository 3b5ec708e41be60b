"""The rows of a data set while it is built: columns, of which a few rows at a time become `Sample` objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.catalog import CATALOG_SCHEMA, SPLITS, Sample, from_table
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ids import Ids, sort_order, to_hex
from data_pipeline.ingest.curate import duplicate_sets, settle
from data_pipeline.ingest.images import HASH_BYTES
from data_pipeline.parts import PART, in_parts

Result = TypeVar("Result")
Places = npt.NDArray[np.int64]  # row numbers
_TYPES = ("", *CELL_TYPES)
_NUMBER_OF_TYPE = {name: number for number, name in enumerate(_TYPES)}


def type_numbers(cell_types: pa.ChunkedArray) -> npt.NDArray[np.int8]:
    """Numbers of cell types, '' for unlabelled."""
    return np.asarray(pc.index_in(cell_types.cast(pa.string()), pa.array(_TYPES)).to_numpy()).astype(np.int8)


@dataclass
class Stored:
    """Where the images of n rows are stored."""

    shards: npt.NDArray[np.int32]  # [n], numbers of `names`; 0 for an image that is not stored
    offsets: npt.NDArray[np.int64]  # [n]
    sizes: npt.NDArray[np.int32]  # [n], bytes
    crc32: npt.NDArray[np.uint32]  # [n]
    names: list[str] = field(default_factory=lambda: [""])  # of shards

    @classmethod
    def nowhere(cls, rows: int) -> Stored:
        """Takes no memory until something is put in."""
        shards, sizes, crc32 = np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.uint32)
        return cls(shards, np.zeros(rows, np.int64), sizes, crc32)

    def put(self, rows: Places, shard: str, offsets: Any, sizes: Any, crc32: Any) -> None:
        """Enter the images of one shard."""
        self.shards[rows] = len(self.names)
        self.names.append(shard)
        self.offsets[rows], self.sizes[rows], self.crc32[rows] = offsets, sizes, crc32


@dataclass
class SourceRows:
    """The n rows of one source, in the order of the catalogue: about 150 bytes each."""

    source: str
    images: pa.Table  # path, source_label, group, domain, microns_per_pixel, as in RawImages
    ids: Ids
    cell_types: npt.NDArray[np.int8]  # [n], numbers of _TYPES
    splits: npt.NDArray[np.int8]  # [n], numbers of SPLITS
    folds: npt.NDArray[np.int8]  # [n]
    hashes: npt.NDArray[np.uint8]  # [n, HASH_BYTES], perceptual
    widths: npt.NDArray[np.int32]  # [n], pixels; -1 for a file without size and hash
    heights: npt.NDArray[np.int32]  # [n]
    kept: npt.NDArray[np.bool_]  # [n]
    reasons: dict[int, str]  # row -> why it is excluded, or its label was corrected
    stored: Stored

    def __len__(self) -> int:
        return len(self.ids)

    def paths(self) -> Iterator[list[str]]:
        """The paths, in parts."""
        for part in self.images.select(["path"]).to_batches(PART):
            yield part["path"].to_pylist()

    def table(self, rows: Places | slice) -> pa.Table:
        """These rows, with the columns of a catalogue."""
        if isinstance(rows, slice):
            numbers = np.arange(rows.start, rows.stop)
            images = self.images.slice(rows.start, len(numbers))
        else:
            numbers, images = rows, self.images.take(rows)
        text = {name: images[name].cast(pa.string()).combine_chunks() for name in ("path", "source_label", "domain")}
        ids, group = to_hex(self.ids[rows]), images["group"].cast(pa.string()).combine_chunks()
        kept, known, stored = self.kept[rows], self.widths[rows] >= 0, self.stored.shards[rows] > 0
        hashes = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(HASH_BYTES), len(numbers), [None, pa.py_buffer(np.ascontiguousarray(self.hashes[rows]))]
        )
        columns = text | {
            "id": ids,
            "source": pa.repeat(self.source, len(numbers)),
            "cell_type": pa.array(_TYPES).take(pa.array(self.cell_types[rows])),
            "group": pc.if_else(
                pc.equal(group, ""), ids, pc.binary_join_element_wise(pa.scalar(self.source), group, pa.scalar("/"))
            ),
            "split": pa.array(SPLITS).take(pa.array(self.splits[rows])),
            "fold": pa.array(self.folds[rows]),
            "origin": pa.repeat("real", len(numbers)),
            "parent": pa.repeat("", len(numbers)),
            "status": pa.array(["excluded", "kept"]).take(pa.array(kept.astype(np.int8))),
            "reason": pa.array([self.reasons.get(number, "") for number in numbers.tolist()], pa.string()),
            "perceptual_hash": pc.if_else(pa.array(known), hashes, pa.scalar(None, pa.binary(HASH_BYTES))),
            "shard": pa.array(self.stored.names).take(pa.array(self.stored.shards[rows])),
            "key": pc.if_else(pa.array(stored), ids, ""),
            "offset": pa.array(self.stored.offsets[rows], mask=~stored),
            "size": pa.array(self.stored.sizes[rows].astype(np.int64), mask=~stored),
            "crc32": pa.array(self.stored.crc32[rows], mask=~stored),
            "width": pa.array(self.widths[rows], mask=~known),
            "height": pa.array(self.heights[rows], mask=~known),
            "microns_per_pixel": images["microns_per_pixel"].combine_chunks(),
        }
        return pa.table([columns[name] for name in CATALOG_SCHEMA.names], CATALOG_SCHEMA)

    def tables(self) -> Iterator[pa.Table]:
        """All rows, in parts."""
        for start in range(0, len(self), PART):
            yield self.table(slice(start, min(start + PART, len(self))))

    def samples(self, rows: Places) -> list[Sample]:
        return from_table(self.table(rows))

    def enter(self, samples: Sequence[tuple[int, Sample]]) -> None:
        """Enter what was changed in samples of these rows: status, reason and cell type."""
        for row, sample in samples:
            self.kept[row], self.cell_types[row] = sample.kept, _NUMBER_OF_TYPE[sample.cell_type]
            if sample.reason:
                self.reasons[row] = sample.reason

    def kept_by_split(self) -> Iterator[tuple[str, Places]]:
        """The kept rows of each split, sorted by id."""
        for number, split in enumerate(SPLITS):
            rows = np.flatnonzero(self.kept & (self.splits == number))
            yield split, rows[sort_order(self.ids[rows])]


def change_rows(sources: Sequence[SourceRows], rows: Places, action: Callable[[list[Sample]], Result]) -> Result:
    """Let an action exclude or correct rows, or their labels; returns its result.

    rows: numbers that count through all sources, in rising order.
    """
    starts = np.cumsum([0, *map(len, sources)])
    cuts = np.searchsorted(rows, starts)
    parts = [rows[first:last] - start for first, last, start in zip(cuts, cuts[1:], starts, strict=False)]
    samples = [each.samples(part) for each, part in zip(sources, parts, strict=True)]
    placed = [list(zip(part.tolist(), some, strict=True)) for part, some in zip(parts, samples, strict=True)]
    result = action([sample for some in samples for sample in some])
    for each, changed in zip(sources, placed, strict=True):
        each.enter(changed)
    return result


def find_rows(sources: Sequence[SourceRows], paths: Collection[str], ids: Collection[str]) -> Places:
    """Numbers, through all sources, of the rows with one of these paths or ids."""
    wanted = {bytes.fromhex(identity) for identity in ids if identity}
    found, start = [np.empty(0, np.int64)], 0
    for each in sources:
        if paths:
            of_path = pc.is_in(each.images["path"], pa.array(list(paths), pa.large_string()))
            found.append(np.flatnonzero(of_path.to_numpy()) + start)
        if wanted:
            found.append(np.flatnonzero([identity.tobytes() in wanted for identity in each.ids]) + start)
        start += len(each)
    return np.unique(np.concatenate(found))


def exclude_duplicates(sources: Sequence[SourceRows]) -> None:
    """Keep one image of each set of equal or nearly equal images (`settle`). sources: in the order of preference."""
    rank = {each.source: place for place, each in enumerate(sources)}
    eligible = [each.kept & (each.widths >= 0) for each in sources]
    rows = np.flatnonzero(np.concatenate(eligible))
    hashes = np.concatenate([each.hashes[chosen] for each, chosen in zip(sources, eligible, strict=True)])
    del eligible
    for sets in in_parts(duplicate_sets(hashes), PART // 16):
        members = np.sort(rows[np.concatenate(sets)])
        place_of = {row: place for place, row in enumerate(members.tolist())}
        groups = [[place_of[row] for row in sorted(rows[one].tolist())] for one in sets]

        def settle_all(samples: list[Sample], groups: list[list[int]] = groups) -> None:
            for group in groups:
                settle([samples[place] for place in group], rank)

        change_rows(sources, members, settle_all)
