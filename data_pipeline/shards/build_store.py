"""The store's side of a build: the lock, the commit by one PUT, and the removal of what no data set refers to."""

from __future__ import annotations

import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from data_pipeline.catalog import Dataset, Sample, write_catalog
from data_pipeline.errors import UserError
from data_pipeline.shards.build_files import (
    DATASET_FILE,
    LOCK_FILE,
    OWN_NAMES,
    REPORT_FILE,
    mirror_of,
    names_of,
    refusal_is_users,
    refuse_derived,
    refuse_foreign,
    report_text,
)
from data_pipeline.shards.location import SHARD_FOLDER
from data_pipeline.shards.store import CATALOG_FILE, Store
from data_pipeline.shards.writer import index_name
from data_pipeline.temporary import temporary_folder

# Seconds between two signs of life of a build, and after how long without one another may take its place: long
# enough for clocks that differ and a store that is away for a while.
_SIGN_OF_LIFE, _STALE = 20.0, 180.0


class StoreSite:
    """A data set's place in a store, for one build."""

    def __init__(self, root: Store) -> None:
        self.root = root
        self._lock = _StoreLock(root)

    @contextmanager
    def held(self) -> Iterator[Dataset | None]:
        """Hold the place against a second build, and yield the data set that is there, if any.

        However the build inside ends before its time, what it left is removed, if the store lets it, and the old data
        set stays. UserError for a place that another build holds, or that is not one of a built data set.
        """
        with self._lock.held(), refusal_is_users(self.root):
            refuse_foreign(self.root, self.root.listing())
            old = Dataset.read_catalog(self.root) if Dataset.is_at(self.root) else None
            refuse_derived(self.root, old)
            try:
                yield old
            except BaseException:
                self._tidy()
                raise

    def _tidy(self) -> None:
        """Remove what a build that failed has left, by the catalogue that is in the store, committed by it or before.

        A store that is away, a damaged catalogue or another build leave it to the next build.
        """
        hurried = self.root.hurried()
        with suppress(UserError):
            self._lock.check(hurried)
            metadata = Dataset.read_catalog(hurried).metadata if Dataset.is_at(hurried) else {}
            _collect_leftovers(hurried, metadata)

    def shard_folder(self) -> Store:
        """Where shards are written to."""
        return self.root.at(SHARD_FOLDER)

    def whole_shards(self, old: Dataset) -> set[str]:
        """The old data set's shards that are there at their size, with their index."""
        there = self.root.listing(SHARD_FOLDER)
        shards = old.metadata["shards"].items()
        return {name for name, facts in shards if there.get(name) == facts["bytes"] and index_name(name) in there}

    def commit(self, samples: Sequence[Sample], metadata: dict[str, Any], report: dict[str, Any]) -> None:
        """Put the new catalogue in the place of the old one; then what tells of it, and what only the old one had goes.

        UserError when another build has taken the place meanwhile.
        """
        with temporary_folder() as temporary:
            catalog = temporary / CATALOG_FILE
            write_catalog(catalog, samples, metadata)
            self._lock.check(self.root)
            if not Dataset.is_at(self.root) or self.root.read(CATALOG_FILE) != catalog.read_bytes():
                self.root.put_file(CATALOG_FILE, catalog)
        self.root.put(DATASET_FILE, mirror_of(metadata))
        self.root.put(REPORT_FILE, report_text(report))
        self._lock.check(self.root)
        _collect_leftovers(self.root, metadata)


def _collect_leftovers(root: Store, metadata: Mapping[str, Any]) -> None:
    """Remove the shards and attachments that the data set's metadata does not name; nothing that others put here."""
    named = names_of(metadata)
    for folder, own_name in OWN_NAMES.items():
        unnamed = [name for name in root.listing(folder) if own_name.fullmatch(name) and name not in named]
        root.remove(f"{folder}/{name}" for name in unnamed)


class _StoreLock:
    """An object that says which build is at work, created where there is none, renewed while it is."""

    def __init__(self, root: Store) -> None:
        self._root, self._hurried = root, root.hurried()
        self._token = uuid.uuid4().hex
        self._since = time.time()
        self._ended = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it; UserError while another build is at work."""
        self._take()
        alive = threading.Thread(target=self._stay_alive, name="build lock", daemon=True)
        alive.start()
        try:
            yield
        finally:
            self._ended.set()
            alive.join()
            with suppress(UserError):  # it runs out by itself too
                self.check(self._hurried)
                self._hurried.remove([LOCK_FILE])

    def check(self, root: Store) -> None:
        """UserError when another build has taken the place of this one, which had given no sign of life for so long."""
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
        # Of two that found the same old one at the same time, the later may have removed the earlier's.
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
    """What the lock says of the build that holds it; None when there is none.

    It says nothing where it is no build's in a store: that of a data set on a disk, copied along.
    """
    try:
        return dict(json.loads(root.read(LOCK_FILE)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {}


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S %Z")
