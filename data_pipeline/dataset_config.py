"""The part of a launcher's configuration that says which data set it reads."""

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

# What becomes of a score of images that were learned from before: no score, or one without them.
SeenChoice = Literal["refuse", "leave_out"]


@dataclass(frozen=True)
class DatasetConfig:
    """Which data set, and where its shards are kept on this machine when it lies in a store.

    shards: a folder, or a URL such as s3://bucket/prefix. cache: folder for the shards of all data sets in stores; null
    takes ~/.cache/hemaforge. cache_size: gigabytes (10^9 bytes) that they take at most.
    """

    shards: str | None = None
    cache: str | None = field(default=None, kw_only=True)
    cache_size: float = field(default=DEFAULT_GIGABYTES, kw_only=True)

    def __post_init__(self) -> None:
        if self.cache_size <= 0:
            raise ValueError(f"cache_size={self.cache_size}: gigabytes, more than 0")

    def require_dataset(self) -> None:
        """UserError where a folder is named that holds no data set; quickly, a store is asked when it is opened."""
        root = root_of(self.shards or "")
        if self.shards and isinstance(root, Path) and not (root / CATALOG_FILE).is_file():
            raise no_dataset(root)

    def open_dataset(self, default: DatasetConfig | None = None) -> Dataset:
        """The data set; UserError when there is none, or it is not as it was committed.

        default: whose data set it is, and whose cache, where none is named here; a run's, say.
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
        """Where shards of a store are kept."""
        return ShardCache(Path(self.cache) if self.cache else None, int(self.cache_size * GIGABYTE))

    def location(self, dataset: Dataset) -> dict[str, str | None]:
        """Where the data set is, and its cache, for whoever reads this configuration from another folder."""
        return {"shards": dataset.address, "cache": os.path.abspath(self.cache) if self.cache else None}
