"""A local cache of the shards of stores: fetched whole, checked, shared by the processes of a node, limited in size.

A file has the shard's name, which ends in the hash of its bytes, so one folder serves any number of data sets. Whoever
fetches a shard locks the temporary file it is written to; that is renamed when its SHA-256 is right. Other processes
wait; the lock of a process that dies is released. The least recently used shards are removed to make room.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from data_pipeline.disk import file_lock, put_in_place, remove_abandoned
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Store

GIGABYTE = 10**9
DEFAULT_GIGABYTES = 100.0
# Below the folder that the user names: files of this folder alone are removed to make room.
_FOLDER = "shard-cache"
_LOCK_FILE = ".lock"
_OWN_NAME = re.compile(r".+-[0-9a-f]{16}(\..*)?")
_COMING = re.compile(r"\.coming-([0-9]+)-(.+)")  # a file being written: its final size in bytes, which counts as taken
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PAUSE = 0.05  # seconds between two looks of a process that waits for another one's fetch


class ShardCache:
    """A folder of shards, of all processes of a node and all data sets in stores."""

    def __init__(self, folder: Path | None = None, limit: int = int(DEFAULT_GIGABYTES * GIGABYTE)) -> None:
        """folder: None for ~/.cache/hemaforge. limit: bytes that all files in it may take."""
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.folder = Path(os.path.abspath(folder or os.path.join(home, "hemaforge"))) / _FOLDER
        self.limit = limit
        self._failures: dict[str, UserError] = {}

    def held(self, name: str, facts: Mapping[str, Any]) -> Path | None:
        """The file's path if it is here whole; facts: its entry {bytes, sha256} in the catalogue."""
        path = self.folder / name
        try:
            return path if path.stat().st_size == facts["bytes"] else None
        except OSError:
            return None

    def fetch(self, store: Store, folder: str, name: str, facts: Mapping[str, Any]) -> Path:
        """Path of a file of a store's folder, fetched if it is not here. Marks it as used now.

        Another process may remove it at any moment to make room: open it at once, and ask again if it is gone.
        UserError when the store's bytes are not those of the catalogue, or the disk refuses them.
        """
        while True:
            here = self.held(name, facts)
            if here is not None and _touch(here):
                return here
            with self._refusal_is_users():
                self._fetch_or_wait(store, folder, name, facts)

    def _fetch_or_wait(self, store: Store, folder: str, name: str, facts: Mapping[str, Any]) -> None:
        """Fetch the file, or wait until another process or thread has fetched it or has failed to."""
        coming = self.folder / f".coming-{facts['bytes']}-{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        waited = False
        while (lock := self._begin(coming, name, facts)) is None:
            if self.held(name, facts) is not None:
                return
            waited = True
            time.sleep(_PAUSE)
        with lock:
            failure = self._failures.pop(name, None)
            try:
                if waited and failure is not None:
                    raise failure  # of another thread, which has waited for the store as long as anybody may
                with self._alone():
                    self._make_room(int(facts["bytes"]), coming)
                _fetch_checked(store, f"{folder}/{name}", coming, facts)
                with self._alone():
                    put_in_place(coming, self.folder / name)
            except BaseException as error:
                if isinstance(error, UserError):
                    self._failures[name] = error
                with self._alone():
                    coming.unlink(missing_ok=True)
                raise

    def _begin(self, coming: Path, name: str, facts: Mapping[str, Any]) -> AbstractContextManager[object] | None:
        """Lock the temporary file to fetch into it; None where the file is here or another one fetches it."""
        with self._alone(), suppress(Timeout):
            return None if self.held(name, facts) is not None else file_lock(coming, blocking=False).acquire()
        return None

    def _make_room(self, wanted: int, coming: Path) -> None:
        """Remove the least recently used files until `wanted` bytes fit in, and what killed processes left.

        A process that has mapped a removed file can still read it.
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
            if under_way and path != coming and not remove_abandoned(path):
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
        """Lock the folder while it is listed or a name in it changes."""
        with file_lock(self.folder / _LOCK_FILE):
            yield

    @contextmanager
    def _refusal_is_users(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            mend = "make room, or lower cache_size=" if error.errno in _FULL else "name another folder, cache=DIR"
            raise UserError(f"{self.folder}: cannot keep shards here ({error.strerror or error}); {mend}") from None


def _fetch_checked(store: Store, name: str, target: Path, facts: Mapping[str, Any]) -> None:
    """Fetch an object whose bytes must be those of the catalogue; a bad transfer is repeated once."""
    for last in (False, True):
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


def _touch(path: Path) -> bool:
    """Mark the file as used now, unless it is another user's; whether it is still there."""
    try:
        os.utime(path)
    except PermissionError:
        return True
    except FileNotFoundError:
        return False
    return True
