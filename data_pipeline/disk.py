"""Files that are on disk whole, or not there under their name; records that tell when their bytes have changed."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Of files that are being written, removed when whoever wrote them did not come to rename them.
TEMPORARY_PREFIX = ".writing-"
_CHECKSUM = "checksum"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError name the file: one of a write, on a full disk say, names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_through(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_through(path: Path, content: bytes) -> None:
    """Put a file in its place whole: under a temporary name first, renamed when it is on disk."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where the block is to write what takes the place of `path`, whole, when the block ends without an error.

    What a killed process left there is removed first: it holds its lock no more. OSError of the disk names the file.
    """
    _remove_abandoned(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{socket.gethostname()}-{os.getpid()}-{path.name}")
    descriptor = _locked(temporary)
    try:
        with naming(path):
            yield temporary
            os.fsync(descriptor)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """The descriptor of a new file that this process holds."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():  # else another process took it for abandoned before it was held
            return descriptor
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    for temporary in path.parent.glob(f"{TEMPORARY_PREFIX}*-{glob.escape(path.name)}"):
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, of JSON's types, and under `checksum` the SHA-256 of what it holds, hex."""
    return {**record, _CHECKSUM: _checksum(record)}


def checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its checksum; ValueError where that is another's. One without passes: older ones have none."""
    content = dict(record)
    written = content.pop(_CHECKSUM, None)
    if written is not None and written != _checksum(content):
        raise ValueError(f"its content is not what was written; changed on purpose: take out its {_CHECKSUM}")
    return content


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
