"""Files that are on disk whole, or not there under their name."""

from __future__ import annotations

import os
from pathlib import Path

# Of files that are being written, removed when whoever wrote them did not come to rename them.
TEMPORARY_PREFIX = ".writing-"


def write_through(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_through(path: Path, content: bytes) -> None:
    """Put a file in its place whole: under a temporary name first, renamed when it is on disk."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    write_through(temporary, content)
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
