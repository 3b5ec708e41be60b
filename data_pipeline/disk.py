"""Files on disk: atomic writes, locks, temporary folders, records with a checksum."""

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

TEMPORARY_PREFIX = ".writing-"  # of files whose writer has not renamed them yet
_CHECKSUM = "checksum"
_FOLDER_PREFIX = "hemaforge-"
_FOLDER_NAME = re.compile(rf"{_FOLDER_PREFIX}[a-z0-9_]{{8}}")
_FOLDER_LOCK = ".held"  # in each temporary folder, locked by the process that made it
_FOLDER_FILES = "files"  # in each temporary folder, what it is for: removed while the lock is there


def file_lock(path: Path, *, blocking: bool = True) -> FileLock:
    """A lock on a file, which is created where there is none. The kernel releases it when its holder dies.

    blocking: wait for the holder; else `filelock.Timeout` is raised while another process or thread holds it.
    """
    return FileLock(path, blocking=blocking, poll_interval=0.02, fallback_to_soft=False)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError that has none, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def replace_through(path: Path, content: bytes) -> None:
    """Replace a file atomically (`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def create_through(path: Path, content: bytes) -> bool:
    """Create a file atomically; False, and no change, where there is one already."""
    with aside(path) as temporary:
        temporary.write_bytes(content)
        sync(temporary)
        try:
            os.link(temporary, path)  # unlike a rename, refused if the name is taken
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file for the block to write. It replaces `path` atomically when the block ends well.

    Temporary files that killed processes left for this path are removed first.
    """
    remove_leftovers(path.parent, path.name)
    with aside(path) as temporary:
        yield temporary
        put_in_place(temporary, path)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield an empty, locked temporary file beside `path`, for `put_in_place`; it is removed if the block fails."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{socket.gethostname()}-{os.getpid()}-{path.name}")
    temporary.touch()  # FileNotFoundError in a folder that is not there: the lock alone would make the folder
    with file_lock(temporary), naming(path):
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush the temporary file to disk, then rename it to `path`."""
    sync(temporary)
    os.replace(temporary, path)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that killed processes left in a folder, for the file `name` or for any."""
    for left in folder.glob(f"{TEMPORARY_PREFIX}*" if name is None else f"{TEMPORARY_PREFIX}*-{glob.escape(name)}"):
        if left.is_file():
            remove_abandoned(left)


def remove_abandoned(path: Path) -> bool:
    """Remove a file unless it is locked or the system refuses; returns whether it is gone."""
    try:
        with file_lock(path, blocking=False):
            path.unlink(missing_ok=True)
    except OSError:  # Timeout is one
        return False
    return True


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder for temporary files, removed at the end; those of killed processes are removed first."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*/{_FOLDER_LOCK}"):
        if _FOLDER_NAME.fullmatch(left.parent.name):
            with suppress(OSError), file_lock(left, blocking=False):  # held, or another user's
                shutil.rmtree(left.parent)
    draft = Path(tempfile.mkdtemp(prefix=f".{_FOLDER_PREFIX}"))
    folder = draft.with_name(draft.name.removeprefix("."))
    (draft / _FOLDER_FILES).mkdir()
    with file_lock(draft / _FOLDER_LOCK):
        draft.rename(folder)  # only a folder that is locked has a name that other processes look for
        try:
            yield folder / _FOLDER_FILES
        finally:
            shutil.rmtree(folder / _FOLDER_FILES)
            # Once the lock is unlinked, another process may take the folder for an abandoned one and remove it too.
            shutil.rmtree(folder, ignore_errors=True)


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, of JSON's types, and under `checksum` the SHA-256 (hex) of its content."""
    return {**record, _CHECKSUM: _checksum(record)}


def checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its checksum; ValueError if it does not match. Older records have none and pass."""
    content = dict(record)
    written = content.pop(_CHECKSUM, None)
    if written is not None and written != _checksum(content):
        raise ValueError(f"its content is not what was written; if you changed it on purpose, remove its {_CHECKSUM}")
    return content


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
