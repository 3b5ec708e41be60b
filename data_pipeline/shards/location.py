"""Where the shards of a data set lie: in its own folder, or in that of a data set it was derived from (contract C1)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.store import Root, Store, is_url

SHARD_FOLDER = "shards"


def holder_of(root: Root, facts: Mapping[str, Any]) -> Root:
    """The data set's folder that holds a shard: `root`, or what the shard's `folder` refers to from there."""
    if "folder" not in facts:
        return root
    folder = str(facts["folder"])
    if is_url(folder):
        return Store(folder)
    if isinstance(root, Store):
        return Path(folder) if os.path.isabs(folder) else root.at(folder)
    return Path(os.path.normpath(os.path.join(os.path.realpath(root), folder)))


def reference(root: Path, other: Root) -> str:
    """How the data set at `root` refers to another: relative in one file system, so that both can move."""
    if isinstance(other, Store):
        return str(other)
    # Through symbolic links, else `..` would mean another folder to whoever comes by one.
    here, there = os.path.realpath(root), os.path.realpath(other)
    return os.path.relpath(there, here) if os.stat(here).st_dev == os.stat(there).st_dev else there


class ShardFiles:
    """The shards of a data set as files on this machine: those in a store are fetched into a cache."""

    def __init__(self, root: Root, shards: Mapping[str, Mapping[str, Any]], cache: ShardCache) -> None:
        """`shards`: the shard table of the data set at `root`."""
        self.cache = cache
        self._root, self._shards = root, shards
        self._holders: dict[str | None, Root] = {}

    def holder(self, name: str) -> Root:
        """The data set's folder, on a disk or in a store, that holds a shard or its index."""
        folder = self._facts(name).get("folder")
        if folder not in self._holders:  # a store that has been asked before answers faster
            self._holders[folder] = holder_of(self._root, self._facts(name))
        return self._holders[folder]

    def in_store(self, name: str) -> bool:
        """Whether a shard lies in a store."""
        return isinstance(self.holder(name), Store)

    @property
    def any_in_store(self) -> bool:
        """Whether any shard lies in a store."""
        return any(self.in_store(name) for name in self._shards)

    def path(self, name: str) -> Path:
        """Where a shard can be opened: see `ShardCache.fetch` for one in a store, which has no index here."""
        holder = self.holder(name)
        if isinstance(holder, Store):
            return self.cache.fetch(holder, SHARD_FOLDER, name, self._facts(name))
        return holder / SHARD_FOLDER / name

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a shard; of one in a store that is not in the cache, they alone are fetched.

        UserError when the shard ends before them, or cannot be read.
        """
        holder = self.holder(name)
        where = f"{holder}/{SHARD_FOLDER}/{name}"
        try:
            if isinstance(holder, Store):
                content = self._read_from_store(holder, name, offset, size)
            else:
                content = _read_range(Path(where), offset, size)
        except OSError as error:
            why = error.strerror or "it is not there"
            raise UserError(f"{where}: cannot be read ({why}); build the data set again") from None
        if len(content) != size:
            raise UserError(f"{where}: the shard is cut short; build the data set again to write it anew")
        return content

    def _read_from_store(self, store: Store, name: str, offset: int, size: int) -> bytes:
        here = self.cache.held(name, self._facts(name))
        if here is not None:
            try:
                return _read_range(here, offset, size)
            except FileNotFoundError:  # another process has just made room
                pass
        return store.read(f"{SHARD_FOLDER}/{name}", offset, offset + size)

    def _facts(self, name: str) -> Mapping[str, Any]:
        return self._shards.get(f"{name.rpartition('.')[0]}.tar", {})


def _read_range(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def check_shards(root: Root, shards: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError, with what to do, unless each shard of the shard table is where it belongs and has its size.

    A store is asked once for the sizes of all.
    """
    listings: dict[Store, Mapping[str, int | None]] = {}
    for name, facts in shards.items():
        holder = holder_of(root, facts)
        if isinstance(holder, Store):
            if holder not in listings:
                listings[holder] = holder.listing(SHARD_FOLDER)
            found = listings[holder].get(name)
            if name in listings[holder] and found is None:  # a store that tells no sizes
                continue
        else:
            shard = holder / SHARD_FOLDER / name
            found = shard.stat().st_size if shard.is_file() else None
        if found != facts["bytes"]:
            raise _wrong_shard(root, holder, name, facts, found)


def _wrong_shard(root: Root, holder: Root, name: str, facts: Mapping[str, Any], found: int | None) -> UserError:
    what = "is missing" if found is None else f"has {found} bytes, not {facts['bytes']}"
    if "folder" not in facts:
        return UserError(
            f"{holder}/{SHARD_FOLDER}/{name}: the shard {what}; build or derive the data set again to write it anew"
        )
    if isinstance(holder, Path) and not holder.is_dir():
        return UserError(
            f"{root}: was derived from the data set at {holder}, which is not there; bring it back, or derive this "
            "one again from where the other is now"
        )
    return UserError(
        f"{root}: was derived from the data set at {holder}, which has changed since: the shard {name} {what}; "
        "derive it again, or bring the old one back"
    )
