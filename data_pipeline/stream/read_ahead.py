"""Prefetching of shards from an object store into the local cache."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.threads import thread_share

# Fraction of the cache; the rest is for shards in use and for other streams.
_SHARE_OF_CACHE = 0.5
_THREADS = 4


class ReadAhead:
    """A few daemon threads that fetch the shards of the next `depth` batches, in the order in which they are needed.

    They use only a part of the cache. A failed fetch is ignored here; the error is raised when the shard is read.
    """

    def __init__(
        self, dataset: Dataset, shards_of: Callable[[int], Sequence[str]], first: int, end: int | None, depth: int
    ) -> None:
        """`shards_of`: names of the shards in the store that a batch needs. `first`, `end`: batches; None: endless."""
        self._dataset, self._shards_of = dataset, shards_of
        self._room = int(dataset.shard_files.cache.limit * _SHARE_OF_CACHE)
        self._current, self._next, self._end, self._depth = first, first, end, depth
        self._to_fetch: deque[str] = deque()
        self._last_use: dict[str, int] = {}  # planned shard -> last batch known to need it
        self._planned_bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        for _ in range(min(_THREADS, thread_share().threads)):
            threading.Thread(target=self._work, name="read ahead", daemon=True).start()

    def advance(self, batch: int) -> None:
        """Call when this batch is read."""
        with self._changed:
            self._current = batch
            for name in [name for name, last in self._last_use.items() if last < batch]:
                del self._last_use[name]
                self._planned_bytes -= self._bytes(name)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop fetching."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (name := self._take()) is not None:
            try:
                self._dataset.shard_path(name)
            except UserError:
                continue

    def _take(self) -> str | None:
        """Waits for the next shard to fetch; None at the end."""
        with self._changed:
            while not self._closed:
                if self._to_fetch:
                    return self._to_fetch.popleft()
                self._next = max(self._next, self._current)  # batches that were read need nothing
                if self._end is not None and self._next >= self._end:
                    return None
                if self._next <= self._current + self._depth and self._planned_bytes <= self._room:
                    self._plan(self._next)
                    self._next += 1
                else:
                    self._changed.wait()
            return None

    def _plan(self, batch: int) -> None:
        for name in self._shards_of(batch):
            if name not in self._last_use:
                self._to_fetch.append(name)
                self._planned_bytes += self._bytes(name)
            self._last_use[name] = batch

    def _bytes(self, name: str) -> int:
        return int(self._dataset.metadata["shards"][name]["bytes"])
