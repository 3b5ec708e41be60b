"""Which data set a launcher reads: a part of its configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_pipeline.errors import UserError
from data_pipeline.shards.cache import DEFAULT_GIGABYTES, GIGABYTE, ShardCache
from data_pipeline.shards.store import CATALOG_FILE, is_url, no_dataset, root_of

if TYPE_CHECKING:
    from data_pipeline.catalog import Dataset

# Metadata of a field that no result depends on: it may change when a run is resumed.
AFFECTS_NOTHING = {"affects": "nothing"}
# Metadata of a field that may change when a run is resumed, though the result of a run from its start depends on it.
AFFECTS_RESULT = {"affects": "result"}
# Images that the weights were trained on: refuse to score, or score without them.
SeenChoice = Literal["refuse", "leave_out"]


@dataclass(frozen=True)
class DatasetConfig:
    """Which data set, and where its shards are cached when it lies in an object store.

    No result depends on these: a data set is identified by its content hash.
    """

    # A folder, or a URL such as s3://bucket/prefix.
    shards: str | None = field(default=None, metadata=AFFECTS_NOTHING)
    # Folder for the shards of all data sets in stores, and for features of frozen networks; null: ~/.cache/hemaforge.
    cache: str | None = field(default=None, kw_only=True, metadata=AFFECTS_NOTHING)
    # Most gigabytes (10^9 bytes) in it.
    cache_size: float = field(default=DEFAULT_GIGABYTES, kw_only=True, metadata=AFFECTS_NOTHING)

    def __post_init__(self) -> None:
        if self.cache_size <= 0:
            raise ValueError(f"cache_size={self.cache_size}: gigabytes, more than 0")

    def require_dataset(self) -> None:
        """UserError where a folder is named that holds no data set. A store is not asked before `open_dataset`."""
        root = root_of(self.shards or "")
        if self.shards and isinstance(root, Path) and not (root / CATALOG_FILE).is_file():
            raise no_dataset(root)

    def open_dataset(self, default: DatasetConfig | None = None) -> Dataset:
        """The data set; UserError where there is none, or it is damaged.

        default: gives the data set and the cache where none is named here, such as a run's.
        """
        from data_pipeline.catalog import Dataset

        if default is not None:
            if not self.shards and not is_url(str(default.shards)) and not Dataset.is_at(Path(str(default.shards))):
                raise UserError(
                    f"{default.shards}: the data set that the run was trained on is not there: give shards=DIR, where "
                    "it lies now, or another data set"
                )
            cache = self if self.cache else default
            return replace(cache, shards=self.shards or default.shards).open_dataset()
        return Dataset.open(str(self.shards), self.shard_cache())

    def shard_cache(self) -> ShardCache:
        return ShardCache(Path(self.cache) if self.cache else None, int(self.cache_size * GIGABYTE))

    def location(self, dataset: Dataset) -> dict[str, str | None]:
        """The data set's address and its cache as absolute paths."""
        return {"shards": dataset.address, "cache": os.path.abspath(self.cache) if self.cache else None}
