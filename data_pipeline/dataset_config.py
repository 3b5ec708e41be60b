"""The part of a launcher's configuration that names its data set."""

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

# Images to be scored that the model has learned from: refuse to score, or score without them.
SeenChoice = Literal["refuse", "leave_out"]


@dataclass(frozen=True)
class DatasetConfig:
    """A data set, and the local cache for the shards of a store."""

    shards: str | None = None  # a folder, or a URL such as s3://bucket/prefix
    cache: str | None = field(default=None, kw_only=True)  # folder of the cache; null for ~/.cache/hemaforge
    cache_size: float = field(default=DEFAULT_GIGABYTES, kw_only=True)  # gigabytes (10^9 bytes), of all data sets

    def __post_init__(self) -> None:
        if self.cache_size <= 0:
            raise ValueError(f"cache_size={self.cache_size}: gigabytes, more than 0")

    def require_dataset(self) -> None:
        """UserError for a folder without a data set. Quick: a store is asked only when it is opened."""
        root = root_of(self.shards or "")
        if self.shards and isinstance(root, Path) and not (root / CATALOG_FILE).is_file():
            raise no_dataset(root)

    def open_dataset(self, default: DatasetConfig | None = None) -> Dataset:
        """Open the data set (`Dataset.open`). default: names data set and cache if this does not, for a run's say."""
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
        """Absolute places of the data set and its cache."""
        return {"shards": dataset.address, "cache": os.path.abspath(self.cache) if self.cache else None}
