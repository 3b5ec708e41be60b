"""A disk that is full ends in one line, loses nothing, and with room again the same command ends as ever."""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.commands import Command
from tests.chaos.forked import Ended, in_child
from tests.chaos.kills import leave_alone
from tests.chaos.outcome import differences, unreadable
from tests.chaos.table import Row

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_PAGE = 4096
_ROOM = 2**28
# Of what a command adds to its place: where the disk ends.
_PARTS = (0.02, 0.15, 0.35, 0.55, 0.75, 0.95)


def take_own_mounts() -> bool:
    """Whether this process and its children may mount small disks, which nobody else sees and which go with them."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


def fill_the_disk(command: Command, parts: tuple[float, ...] = _PARTS) -> Row:
    """Run it where it lies on a small disk, of several sizes; then with room again, to its end."""
    began = time.monotonic()
    row = Row(command.name, "a full disk")
    with _small_disk(command.place, _ROOM):  # a data set refers to one on another disk in another way
        leave_alone(command, None)
    least = 0 if command.before is None else _size(command.before)
    most = _size(command.calm)
    for part in parts:
        size = least + int(part * max(most - least, _PAGE)) + 8 * _PAGE
        with _small_disk(command.place, size):
            command.start_over()
            done = command.process.run()
            row.lost += [f"a disk of {size} bytes: {line}" for line in _faults(command, done, row)]
            row.lost += [
                f"a disk of {size} bytes, full: {line}" for line in in_child(lambda: unreadable(command, command.out))
            ]
            _mount(command.place, f"remount,size={_ROOM}")
            again = command.process.run()
            finished = command.kind == "export" and done.code == 0
            if again.code != 0 and not finished:
                row.lost.append(f"a disk of {size} bytes, with room again: {again.code}: {again.line}")
            row.lost += [
                f"a disk of {size} bytes, at the end: {line}"
                for line in in_child(lambda: differences(command.place, command.calm))
            ]
    row.seconds = time.monotonic() - began
    return row


def _faults(command: Command, done: Ended, row: Row) -> Iterator[str]:
    if done.code == 0:
        row.missed += 1
        yield from (f"ended well, yet {line}" for line in in_child(lambda: differences(command.place, command.calm)))
        return
    row.tries += 1
    if done.code != 2 or "Traceback" in done.stderr:
        yield f"code {done.code}: {done.stderr.strip()[-600:]}"
    elif str(command.place) not in done.line:
        yield f"does not name the place: {done.line}"
    else:
        row.noticed += 1


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[None]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    _mount(place, f"size={size}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)


def _size(folder: Path) -> int:
    """Bytes that a folder takes of a disk of pages."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // _PAGE) * _PAGE for size in sizes)
