"""Encoded images at their offsets in memory-mapped shards."""

import zlib
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError

# Linux maps 65,530 files a process at most; a map is cheap to open again.
_OPEN_SHARDS = 4096


class ShardBytes:
    """The stored images of a table of samples, each checked against the catalogue when first read."""

    def __init__(self, dataset: Dataset, samples: pd.DataFrame) -> None:
        self._dataset = dataset
        self._shard, names = samples["shard"].factorize()
        self._names = [str(name) for name in names]
        self._offset, self._size = samples["offset"].to_numpy(), samples["size"].to_numpy()
        self._crc, self._ids = samples["crc32"].to_numpy(), samples["id"]
        self._checked = np.zeros(len(samples), dtype=bool)
        self._maps: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()

    def read(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        """Encoded bytes of each row, uint8 [bytes], as views into the mapped shards.

        UserError when a shard cannot be read or its bytes have changed.
        """
        found = []
        for row in rows:
            start, size = self._offset[row], self._size[row]
            encoded = self._map(self._shard[row])[start : start + size]
            if not self._checked[row]:
                if len(encoded) != size or zlib.crc32(encoded.data) != self._crc[row]:
                    raise UserError(
                        f"{self._dataset.shard_path(self._names[self._shard[row]])}: the bytes of sample "
                        f"{self._ids.iloc[row]} at offset {start} are not those that were written: check the "
                        "disk, then run build_shards.py with verify=true and build again"
                    )
                self._checked[row] = True
            found.append(encoded)
        return found

    def _map(self, shard: int) -> npt.NDArray[np.uint8]:
        mapped = self._maps.get(shard)
        if mapped is not None:
            self._maps.move_to_end(shard)
        else:
            if len(self._maps) >= _OPEN_SHARDS:
                self._maps.popitem(last=False)
            path = self._dataset.shard_path(self._names[shard])
            try:
                mapped = self._maps[shard] = np.memmap(path, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: shard cannot be read ({error}): build the data set again") from error
        return mapped
