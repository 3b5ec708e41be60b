"""A build in a store: its lock, its commit by one PUT, and the removal of objects that no data set refers to."""

import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset, catalog_bytes
from data_pipeline.disk import temporary_folder
from data_pipeline.errors import UserError
from data_pipeline.partitions import PARTITION_FOLDER
from data_pipeline.shards.build_files import (
    DATASET_FILE,
    LOCK_FILE,
    OWN_NAMES,
    REPORT_FILE,
    mirror_of,
    names_of,
    old_dataset,
    refusal_is_users,
    refuse_foreign,
    report_text,
)
from data_pipeline.shards.location import SHARD_FOLDER
from data_pipeline.shards.store import CATALOG_FILE, Store
from data_pipeline.shards.writer import index_name

_SIGN_OF_LIFE = 20.0  # seconds between two renewals of a build's lock
_STALE = 180.0  # seconds without one until another build may take over: clocks differ, and a store may be away


class StoreSite:
    """A data set's folder in a store, for one build."""

    def __init__(self, root: Store) -> None:
        self.root = root
        self._lock = _StoreLock(root)
        self.rows_root = Path()  # while the lock is held: where the rows are written before the commit

    @contextmanager
    def held(self) -> Iterator[Dataset | None]:
        """Lock the folder and yield the data set that is there, if any.

        If the build inside fails, its objects are removed, if the store allows it, and the old data set stays.
        UserError when another build holds the folder, or it is not that of a built data set.
        """
        with temporary_folder() as self.rows_root, self._lock.held(), refusal_is_users(self.root):
            refuse_foreign(self.root, self.root.listing())
            with old_dataset(self.root, self._tidy) as old:
                yield old

    def _tidy(self) -> None:
        """Remove what the catalogue in the store does not name: the new one, if the build failed after its commit.

        Left to the next build when the store is away, the catalogue is damaged or another build is at work.
        """
        hurried = self.root.hurried()
        with suppress(UserError):
            self._lock.check(hurried)
            metadata = Dataset.read_catalog(hurried).metadata if Dataset.is_at(hurried) else {}
            _collect_leftovers(hurried, metadata)

    def shard_folder(self) -> Store:
        """Where shards are written."""
        return self.root.at(SHARD_FOLDER)

    def whole_shards(self, old: Dataset) -> set[str]:
        """The old data set's shards that have their size and an index."""
        there = self.root.listing(SHARD_FOLDER)
        shards = old.metadata["shards"].items()
        return {name for name, facts in shards if there.get(name) == facts["bytes"] and index_name(name) in there}

    def commit(self, metadata: dict[str, Any], report: dict[str, Any]) -> None:
        """Write the rows, replace the catalogue, then `dataset.json` and the report; remove what only the old one had.

        UserError when another build has taken over.
        """
        catalog = catalog_bytes(metadata)
        self._lock.check(self.root)
        there = self.root.listing(PARTITION_FOLDER)
        for name in (name for name, facts in metadata["partitions"].items() if there.get(name) != facts["bytes"]):
            self.root.put_file(f"{PARTITION_FOLDER}/{name}", self.rows_root / PARTITION_FOLDER / name)
        if not Dataset.is_at(self.root) or self.root.read(CATALOG_FILE) != catalog:
            self.root.put(CATALOG_FILE, catalog)
        self.root.put(DATASET_FILE, mirror_of(metadata))
        self.root.put(REPORT_FILE, report_text(report))
        self._lock.check(self.root)
        _collect_leftovers(self.root, metadata)


def _collect_leftovers(root: Store, metadata: Mapping[str, Any]) -> None:
    """Remove own shards, rows and attachments that the data set's metadata does not name."""
    named = names_of(metadata)
    for folder, own_name in OWN_NAMES.items():
        unnamed = [name for name in root.listing(folder) if own_name.fullmatch(name) and name not in named]
        root.remove(f"{folder}/{name}" for name in unnamed)


class _StoreLock:
    """An object that names the build at work: created where there is none, renewed while the build lives."""

    def __init__(self, root: Store) -> None:
        self._root, self._hurried = root, root.hurried()
        self._token = uuid.uuid4().hex
        self._since = time.time()
        self._ended = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; UserError while another build does."""
        self._take()
        alive = threading.Thread(target=self._stay_alive, name="build lock", daemon=True)
        alive.start()
        try:
            yield
        finally:
            self._ended.set()
            alive.join()
            with suppress(UserError):  # it also expires
                self.check(self._hurried)
                self._hurried.remove([LOCK_FILE])

    def check(self, root: Store) -> None:
        """UserError when another build has taken over, as this one did not renew its lock in time."""
        holder = _lock_in(root) or {}
        if holder.get("token") != self._token:
            raise UserError(
                f"{self._root}: another build ({holder.get('owner', 'gone since')}) has taken the place of this one, "
                "which could not reach the store for too long; start again when that one has ended"
            )

    def _take(self) -> None:
        while True:
            there = _lock_in(self._root)
            holder = there or {}
            until = float(holder.get("alive", 0)) + _STALE
            if time.time() < until:
                raise UserError(
                    f"{self._root}: another build is at work here ({holder['owner']}, since "
                    f"{_clock(holder['since'])}); wait until it has ended: one that was killed gives way at "
                    f"{_clock(until)}"
                )
            if there is not None:
                self._root.remove([LOCK_FILE])
            if self._root.create(LOCK_FILE, self._content()):
                break
        # Of two builds that found the same stale lock, the later may have removed the earlier's new one.
        self.check(self._root)

    def _stay_alive(self) -> None:
        while not self._ended.wait(_SIGN_OF_LIFE):
            with suppress(UserError):
                self.check(self._hurried)
                self._hurried.put(LOCK_FILE, self._content())

    def _content(self) -> bytes:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        content = {"owner": owner, "since": self._since, "alive": time.time(), "token": self._token}
        return json.dumps(content).encode()


def _lock_in(root: Store) -> dict[str, Any] | None:
    """Content of the lock; None when there is none, {} for the empty lock file of a data set copied from a disk."""
    try:
        return dict(json.loads(root.read(LOCK_FILE)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {}


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S %Z")
