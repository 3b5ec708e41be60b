"""Encoded images from memory-mapped shards."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.catalog import Dataset
from data_pipeline.columns import Columns, Readers, sorted_columns
from data_pipeline.errors import UserError
from data_pipeline.ids import Ids

_OPEN_SHARDS = 4096  # Linux maps at most 65,530 files per process; a map is cheap to open again


@dataclass(frozen=True)
class ImagePlaces:
    """Where the stored images of n samples are: 52 bytes a sample."""

    ids: Ids  # of the samples
    shards: npt.NDArray[np.int32]  # [n], numbers of `names`
    offsets: npt.NDArray[np.int64]  # [n], in the shard, bytes
    sizes: npt.NDArray[np.int32]  # [n], bytes
    crc32: npt.NDArray[np.uint32]  # [n]
    names: Sequence[str]  # of shards


PLACE_COLUMNS = ("id", "shard", "offset", "size", "crc32")


def places_of(
    rows: Iterable[pa.RecordBatch], most: int, names: Sequence[str], others: Readers = MappingProxyType({})
) -> tuple[ImagePlaces, Columns]:
    """Places of rows, sorted by id, and other columns of them, in the same order.

    rows: in parts, with PLACE_COLUMNS, at most `most`. names: of all shards. others: as in `sorted_columns`.
    """
    known = pa.array(names, pa.string())
    read: Readers = {
        "shards": lambda part: pc.index_in(part["shard"], known).to_numpy(zero_copy_only=False).astype(np.int32),
        "offsets": lambda part: part["offset"].to_numpy(zero_copy_only=False),
        "sizes": lambda part: part["size"].to_numpy(zero_copy_only=False).astype(np.int32),
        "crc32": lambda part: part["crc32"].to_numpy(zero_copy_only=False),
    }
    columns = sorted_columns(rows, most, {**read, **others})
    ids, shards, offsets, sizes, crc32 = map(columns.pop, ("ids", "shards", "offsets", "sizes", "crc32"))
    return ImagePlaces(ids, shards, offsets, sizes, crc32, names), columns


class ShardBytes:
    """The stored images of some samples; an image's CRC-32 is checked when it is first read."""

    def __init__(self, dataset: Dataset, places: ImagePlaces) -> None:
        self._dataset = dataset
        self._places = places
        self._checked = np.zeros(len(places.ids), dtype=bool)
        self._maps: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()

    def read(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        """Encoded bytes of each row, uint8 [bytes], views of the mapped shards.

        UserError when a shard cannot be read or its bytes have changed.
        """
        found, places = [], self._places
        for row in rows:
            start, size = int(places.offsets[row]), int(places.sizes[row])
            encoded = self._map(int(places.shards[row]))[start : start + size]
            if not self._checked[row]:
                if len(encoded) != size or zlib.crc32(encoded.data) != places.crc32[row]:
                    raise self._damaged(row)
                self._checked[row] = True
            found.append(encoded)
        return found

    def shards_in_store(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The shards of these rows that are in a store, in the order of first use."""
        shards, first = np.unique(self._places.shards[rows], return_index=True)
        names = [self._places.names[shard] for shard in shards[first.argsort()]]
        return [name for name in names if self._dataset.shard_files.in_store(name)]

    def close(self) -> None:
        """Unmap all shards; they are mapped again when they are read again."""
        self._maps.clear()

    def _map(self, shard: int) -> npt.NDArray[np.uint8]:
        mapped = self._maps.get(shard)
        if mapped is not None:
            self._maps.move_to_end(shard)
        else:
            if len(self._maps) >= _OPEN_SHARDS:
                self._maps.popitem(last=False)
            mapped = self._maps[shard] = self._open(self._places.names[shard])
        return mapped

    def _open(self, name: str) -> npt.NDArray[np.uint8]:
        kept = self._dataset.shard_files.in_store(name)
        while True:
            path = self._dataset.shard_path(name)
            if kept:
                self._let_go_of_removed()
            try:
                return np.memmap(path, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:
                if kept and isinstance(error, FileNotFoundError):  # removed by another process to make room
                    continue
                raise UserError(f"{path}: shard cannot be read ({error}): build the data set again") from error

    def _let_go_of_removed(self) -> None:
        """Unmap files that the cache has removed: they take room while they are mapped."""
        for shard, mapped in list(self._maps.items()):
            if not os.path.exists(str(mapped.filename)):  # type: ignore[attr-defined]
                del self._maps[shard]

    def _damaged(self, row: np.int64) -> UserError:
        name = self._places.names[self._places.shards[row]]
        mend = (
            "delete this file, and it is fetched again"
            if self._dataset.shard_files.in_store(name)
            else "run build_shards.py with verify=true and build again"
        )
        return UserError(
            f"{self._dataset.shard_path(name)}: the bytes of sample {self._places.ids[row].tobytes().hex()} at offset "
            f"{self._places.offsets[row]} are not those that were written: check the disk, then {mend}"
        )
