"""Where a data set is: a folder on disk, or a store that fsspec knows, at a URL such as s3://bucket/prefix.

A store is asked for little: whole objects, ranges of them, listings, and PUTs that happen as a whole or not at all.
Endpoint and credentials are those of the environment and of the store's own configuration files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.shards.store_client import StoreClient, status_of

Result = TypeVar("Result")
# The file that makes a folder a data set.
CATALOG_FILE = "catalog.parquet"
# Seconds that a store may be away before whoever needs it gives up: less than other processes wait for this one.
PATIENCE = 300.0
_LITTLE_PATIENCE = 5.0
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OF_A_DISK = ("file://", "local://")


class Store:
    """A folder of objects at a URL. It may be pickled, and used by several threads at once."""

    def __init__(self, url: str, patience: float = PATIENCE, client: StoreClient | None = None) -> None:
        """`patience`: seconds to wait for a store that does not answer. `client`: shared with another store."""
        scheme, _, path = url.partition("://")
        if "::" in url:
            raise UserError(f"{url}: a URL inside a URL; give that of a folder, s3://bucket/prefix say")
        if not path.strip("/"):
            raise UserError(f"{url}: names no bucket; give s3://bucket/prefix, say")
        self.url = url.rstrip("/")
        self.patience = patience
        self._client = client or StoreClient(scheme.lower())

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def at(self, folder: str) -> Store:
        """The store at a folder relative to this one; `..` goes up."""
        scheme, sign, path = self.url.partition("://")
        return Store(scheme + sign + posixpath.normpath(posixpath.join(path, folder)), self.patience, self._client)

    def hurried(self) -> Store:
        """The same store for work that can be left undone: nobody waits for it long."""
        return Store(self.url, min(self.patience, _LITTLE_PATIENCE), self._client)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """An object's bytes, or those from start to stop. FileNotFoundError when there is none."""
        return bytes(self._ask(f"read {name}", lambda system: system.cat_file(self._path(name), start=start, end=stop)))

    def listing(self, folder: str = "") -> dict[str, int | None]:
        """Names directly below a folder, with sizes in bytes; None for a folder, or where the store tells no size."""

        def ask(system: Any) -> dict[str, int | None]:
            try:
                entries = system.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
            names = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in entries}
            return {name: None if entry["type"] == "directory" else entry["size"] for name, entry in names.items()}

        return self._ask(f"list {folder or 'its folder'}", ask)

    def fetch(self, name: str, target: Path) -> None:
        """Copy an object into a file, over what is there. FileNotFoundError when there is none, OSError of the disk."""
        self._ask(f"fetch {name}", lambda system: system.get_file(self._path(name), str(target)))

    def put(self, name: str, content: bytes) -> None:
        """Put an object in the place of what is there, whole or not at all."""
        self._ask(f"write {name}", lambda system: system.pipe_file(self._path(name), content), writes=True)

    def put_file(self, name: str, source: Path) -> None:
        """As `put`, of a file's bytes."""
        self._ask(f"write {name}", lambda system: system.put_file(str(source), self._path(name)), writes=True)

    def create(self, name: str, content: bytes) -> bool:
        """Put an object where there is none; False when there is one, of other bytes.

        A store that cannot tell the two apart takes it in any case.
        """

        def ask(system: Any) -> bool:
            try:
                system.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if status_of(error) in (409, 412):
                    return False
                if status_of(error) != 501:
                    raise
                system.pipe_file(self._path(name), content)
            return True

        if self._ask(f"write {name}", ask, writes=True):
            return True
        try:  # An answer may have been lost on its way, and the object be ours.
            return self.read(name) == content
        except FileNotFoundError:
            return False

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; one that is not there is none to remove."""
        for path in map(self._path, names):
            try:
                self._ask(f"remove {path}", partial(_remove, path))
            except FileNotFoundError:
                continue

    def _ask(self, what: str, action: Callable[[Any], Result], writes: bool = False) -> Result:
        return self._client.ask(self.url, what, action, self.patience, writes)

    def _path(self, name: str) -> str:
        """An object's path in fsspec's file system."""
        from fsspec.core import strip_protocol

        return str(strip_protocol(f"{self.url}/{name}" if name else self.url))


def _remove(path: str, system: Any) -> None:
    system.rm_file(path)


Root: TypeAlias = Path | Store


def root_of(address: str | Path | Store) -> Root:
    """Where an address points to: a URL to a store, anything else to a folder."""
    if not isinstance(address, str):
        return address
    if not is_url(address):
        return Path(address)
    for scheme in _OF_A_DISK:
        if address.startswith(scheme):
            return Path(address.removeprefix(scheme))
    return Store(address)


def no_dataset(root: Root) -> UserError:
    """What to say of a place without a data set."""
    return UserError(f"{root}: no data set here (no {CATALOG_FILE}); make one with launchers/build_shards.py")


def is_url(address: str) -> bool:
    """Whether an address is written as a URL."""
    return _SCHEME.match(address) is not None


def folder_of(address: str, argument: str) -> Path:
    """The folder of an argument that can name no store. UserError when it does."""
    root = root_of(address)
    if isinstance(root, Store):
        raise UserError(f"{argument}={address}: written to a disk only; name a folder, and copy it to the store after")
    return root
