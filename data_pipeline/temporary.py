"""Temporary folders that do not outlive their process for long, however it ends."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "hemaforge-"
_OWN_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
# In each of them, held by the process that made it.
_HELD_FILE = ".held"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder where the system has its temporary files, removed at the end.

    Those of processes that were killed are removed first: nobody holds them.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        descriptor = os.open(Path(name) / _HELD_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another process may have held it in between, and removed it as abandoned.
            Path(name).mkdir(exist_ok=True)
            yield Path(name)
        finally:
            os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """What cannot be removed, another user's say, is left."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _OWN_NAME.fullmatch(path.name):
                with suppress(OSError):
                    _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    descriptor = os.open(path / _HELD_FILE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    finally:
        os.close(descriptor)
