"""Where the shards of a data set are: in its own folder, or in that of a data set it was derived from."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.store import Root, Store, is_url

SHARD_FOLDER = "shards"


def holder_of(root: Root, facts: Mapping[str, Any]) -> Root:
    """The data set that holds a shard: at `root`, or where the shard's entry `folder` refers to from there."""
    if "folder" not in facts:
        return root
    folder = str(facts["folder"])
    if is_url(folder):
        return Store(folder)
    if isinstance(root, Store):
        return Path(folder) if os.path.isabs(folder) else root.at(folder)
    return Path(os.path.normpath(os.path.join(os.path.realpath(root), folder)))


def reference(root: Path, other: Root) -> str:
    """How the data set at `root` refers to another: relative in one file system, so that both can be moved."""
    if isinstance(other, Store):
        return str(other)
    # Without symbolic links: through one, `..` means another folder.
    here, there = os.path.realpath(root), os.path.realpath(other)
    return os.path.relpath(there, here) if os.stat(here).st_dev == os.stat(there).st_dev else there


class ShardFiles:
    """The shards of a data set as local files: those in a store are fetched into a cache."""

    def __init__(self, root: Root, shards: Mapping[str, Mapping[str, Any]], cache: ShardCache) -> None:
        """shards: the shard table of the data set at `root`."""
        self.cache = cache
        self._root, self._shards = root, shards
        self._holders: dict[str | None, Root] = {}

    def holder(self, name: str) -> Root:
        """The data set that holds a shard or its index."""
        folder = self._facts(name).get("folder")
        if folder not in self._holders:  # an open store answers faster
            self._holders[folder] = holder_of(self._root, self._facts(name))
        return self._holders[folder]

    def in_store(self, name: str) -> bool:
        return isinstance(self.holder(name), Store)

    @property
    def any_in_store(self) -> bool:
        return any(self.in_store(name) for name in self._shards)

    def path(self, name: str) -> Path:
        """Local path of a shard; one of a store (`ShardCache.fetch`) has no index beside it."""
        holder = self.holder(name)
        if isinstance(holder, Store):
            return self.cache.fetch(holder, SHARD_FOLDER, name, self._facts(name))
        return holder / SHARD_FOLDER / name

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a shard; from a store only they are fetched. UserError when it is too short or cannot be read."""
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
        with suppress(FileNotFoundError):  # removed by another process to make room
            if here is not None:
                return _read_range(here, offset, size)
        return store.read(f"{SHARD_FOLDER}/{name}", offset, offset + size)

    def _facts(self, name: str) -> Mapping[str, Any]:
        return self._shards.get(f"{name.rpartition('.')[0]}.tar", {})


def _read_range(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def check_shards(root: Root, shards: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError unless each shard of the shard table is in its place and has its size; a store is listed once."""
    listings: dict[Store, Mapping[str, int | None]] = {}
    for name, facts in shards.items():
        holder = holder_of(root, facts)
        if isinstance(holder, Store):
            if holder not in listings:
                listings[holder] = holder.listing(SHARD_FOLDER)
            found = listings[holder].get(name)
            if name in listings[holder] and found is None:  # a store without sizes
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
