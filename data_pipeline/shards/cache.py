"""Shards of a store on the local disk: fetched whole, checked, shared by the processes of a node, within a size limit.

A shard's file has the shard's name, which ends in the hash of its bytes, so one folder serves any number of data sets.
Whoever fetches a shard holds a lock on the file that it is written to, which gets its name when its SHA-256 is right:
the others wait for it, and a process that dies lets go of it. The shards used longest ago make room.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.shards.store import Store

GIGABYTE = 10**9
DEFAULT_GIGABYTES = 100.0
# Below the folder that the user names, which may hold anything: what is in this one is removed to make room.
_FOLDER = "shard-cache"
_LOCK_FILE = ".lock"
_OWN_NAME = re.compile(r".+-[0-9a-f]{16}(\..*)?")
# The name of a file that is being written says how large it will be: that much room is taken.
_COMING = re.compile(r"\.coming-([0-9]+)-(.+)")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ShardCache:
    """A folder of shards, of all processes of a node and all data sets in stores."""

    def __init__(self, folder: Path | None = None, limit: int = int(DEFAULT_GIGABYTES * GIGABYTE)) -> None:
        """`folder`: None takes the user's own, ~/.cache/hemaforge. `limit`: most bytes that the files in it take."""
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.folder = Path(os.path.abspath(folder or os.path.join(home, "hemaforge"))) / _FOLDER
        self.limit = limit
        self._failures: dict[str, UserError] = {}

    def held(self, name: str, facts: Mapping[str, Any]) -> Path | None:
        """Where a file lies if it is here; facts: its entry {bytes, sha256} in the catalogue."""
        path = self.folder / name
        try:
            return path if path.stat().st_size == facts["bytes"] else None
        except OSError:
            return None

    def fetch(self, store: Store, folder: str, name: str, facts: Mapping[str, Any]) -> Path:
        """Where a file of a store's folder lies, fetched if it is not here; it counts as used now.

        Another process may remove it at any moment to make room: open it at once, and ask again where it is gone.
        UserError when the store holds other bytes than the catalogue says, or the disk does not take them.
        """
        while True:
            here = self.held(name, facts)
            if here is not None and _touch(here):
                return here
            with self._refusal_is_users():
                self._fetch_or_wait(store, folder, name, facts)

    def _fetch_or_wait(self, store: Store, folder: str, name: str, facts: Mapping[str, Any]) -> None:
        """Fetch the file, or wait until another process or thread has fetched it, or failed to."""
        coming = self.folder / f".coming-{facts['bytes']}-{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if self.held(name, facts) is not None:
                return
            self._make_room(int(facts["bytes"]), coming)
            descriptor = os.open(coming, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            mine = _lock(descriptor)
        try:
            if not mine:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                failure = self._failures.get(name)
                if failure is not None and self.held(name, facts) is None:
                    raise failure  # of another thread, which has waited as long as anybody is to wait
                return
            self._failures.pop(name, None)
            try:
                _fetch_checked(store, f"{folder}/{name}", coming, facts)
                os.fsync(descriptor)
                with self._alone():
                    os.replace(coming, self.folder / name)
            except BaseException as error:
                if isinstance(error, UserError):
                    self._failures[name] = error
                with self._alone():
                    coming.unlink(missing_ok=True)
                raise
        finally:
            os.close(descriptor)

    def _make_room(self, wanted: int, coming: Path) -> None:
        """Remove what was used longest ago until so many bytes fit in, and what a killed process left.

        Who has a removed file mapped can go on reading it.
        """
        if wanted > self.limit:
            raise UserError(
                f"{self.folder}: a shard of {wanted / GIGABYTE:.3g} GB does not fit into a cache of "
                f"{self.limit / GIGABYTE:.3g} GB; raise cache_size="
            )
        files: list[tuple[int, int, Path]] = []
        taken = 0
        for path in self.folder.iterdir():
            under_way = _COMING.fullmatch(path.name)
            if under_way and path != coming and not _remove_abandoned(path):
                taken += int(under_way[1])
            elif _OWN_NAME.fullmatch(path.name) and not under_way:
                state = path.stat()
                taken += state.st_size
                files.append((state.st_mtime_ns, state.st_size, path))
        for _, size, path in sorted(files):
            if taken + wanted <= self.limit:
                return
            path.unlink()
            taken -= size

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder against other processes: while it is looked through, and while a name in it changes."""
        descriptor = os.open(self.folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _refusal_is_users(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            mend = "make room, or lower cache_size=" if error.errno in _FULL else "name another folder, cache=DIR"
            raise UserError(f"{self.folder}: cannot keep shards here ({error.strerror or error}); {mend}") from None


def _fetch_checked(store: Store, name: str, target: Path, facts: Mapping[str, Any]) -> None:
    """Fetch an object whose bytes must be those of the catalogue."""
    for last in (False, True):  # what was damaged on its way is right the second time
        try:
            store.fetch(name, target)
        except FileNotFoundError:
            raise UserError(
                f"{store}/{name}: is missing; bring it back, or build the data set again to write it anew"
            ) from None
        with target.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]:
                return
            size = os.fstat(file.fileno()).st_size
        if last:
            what = "its SHA-256 is another" if size == facts["bytes"] else f"{size} bytes, not {facts['bytes']}"
            raise UserError(
                f"{store}/{name}: not the bytes that were written ({what}); delete this object and build the data set "
                "again to write it anew"
            )


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_abandoned(path: Path) -> bool:
    """Remove a file that nobody is writing any more."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not _lock(descriptor):
            return False
        path.unlink()
        return True
    finally:
        os.close(descriptor)


def _touch(path: Path) -> bool:
    """Whether the file is still there; it counts as used now, unless it is another user's."""
    try:
        os.utime(path)
    except PermissionError:
        return True
    except FileNotFoundError:
        return False
    return True
