"""Where a data set is: a folder on a disk, or an fsspec store at a URL such as s3://bucket/prefix.

A store needs only whole objects, ranges of them, listings, and PUTs that are atomic. Endpoint and credentials come from
the environment and the store's own configuration files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.shards.store_client import StoreClient, status_of

Result = TypeVar("Result")
CATALOG_FILE = "catalog.parquet"  # makes a folder a data set
PATIENCE = 300.0  # seconds to wait for a store that does not answer; less than other processes wait for this one
_LITTLE_PATIENCE = 5.0  # where the work can be left undone
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OF_A_DISK = ("file://", "local://")


class Store:
    """A folder of objects at a URL. It may be pickled, and used by several threads at once."""

    def __init__(self, url: str, patience: float = PATIENCE, client: StoreClient | None = None) -> None:
        """patience: seconds to wait for a store that does not answer. client: shared with another store."""
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def at(self, folder: str) -> Store:
        """The store at a folder relative to this one, which may begin with `..`."""
        scheme, sign, path = self.url.partition("://")
        return Store(scheme + sign + posixpath.normpath(posixpath.join(path, folder)), self.patience, self._client)

    def hurried(self) -> Store:
        """The same store with little patience, for work that can be left undone."""
        return Store(self.url, min(self.patience, _LITTLE_PATIENCE), self._client)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """An object's bytes, or those from start to stop. FileNotFoundError when there is none."""
        return bytes(self._ask(f"read {name}", lambda system: system.cat_file(self._path(name), start=start, end=stop)))

    def listing(self, folder: str = "") -> dict[str, int | None]:
        """Names directly below a folder and their sizes in bytes; None for a folder or an unknown size."""

        def ask(system: Any) -> dict[str, int | None]:
            try:
                entries = system.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
            names = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in entries}
            return {name: None if entry["type"] == "directory" else entry["size"] for name, entry in names.items()}

        return self._ask(f"list {folder or 'its folder'}", ask)

    def fetch(self, name: str, target: Path) -> None:
        """Copy an object to a file, which is overwritten. FileNotFoundError when there is none, OSError of the disk."""
        self._ask(f"fetch {name}", lambda system: system.get_file(self._path(name), str(target)))

    def put(self, name: str, content: bytes) -> None:
        """Replace an object atomically."""
        self._ask(f"write {name}", lambda system: system.pipe_file(self._path(name), content), writes=True)

    def put_file(self, name: str, source: Path) -> None:
        """As `put`, with a file's content."""
        self._ask(f"write {name}", lambda system: system.put_file(str(source), self._path(name)), writes=True)

    def create(self, name: str, content: bytes) -> bool:
        """Create an object; False when there is one with other bytes, which a store without this feature overwrites."""

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
        try:  # the answer to an earlier attempt may have been lost, and the object be ours
            return self.read(name) == content
        except FileNotFoundError:
            return False

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; no error for one that is not there."""
        for path in map(self._path, names):
            with suppress(FileNotFoundError):
                self._ask(f"remove {path}", lambda system, path=path: system.rm_file(path))  # type: ignore[misc]

    def _ask(self, what: str, action: Callable[[Any], Result], writes: bool = False) -> Result:
        return self._client.ask(self.url, what, action, self.patience, writes)

    def _path(self, name: str) -> str:
        """An object's path in fsspec's file system."""
        from fsspec.core import strip_protocol

        return str(strip_protocol(f"{self.url}/{name}" if name else self.url))


Root: TypeAlias = Path | Store


def root_of(address: str | Path | Store) -> Root:
    """The store of a URL, the folder of any other address."""
    if not isinstance(address, str):
        return address
    if not is_url(address):
        return Path(address)
    for scheme in _OF_A_DISK:
        if address.startswith(scheme):
            return Path(address.removeprefix(scheme))
    return Store(address)


def no_dataset(root: Root) -> UserError:
    """The error for a place without a data set."""
    return UserError(f"{root}: no data set here (no {CATALOG_FILE}); make one with launchers/build_shards.py")


def is_url(address: str) -> bool:
    """Whether an address is written as a URL."""
    return _SCHEME.match(address) is not None


def folder_of(address: str, argument: str) -> Path:
    """The folder that an argument names; UserError when it names a store."""
    root = root_of(address)
    if isinstance(root, Store):
        raise UserError(f"{argument}={address}: written to a disk only; name a folder, and copy it to the store after")
    return root
