"""When a process is killed: at a time, or at one of its changes to the files of its output.

A launcher spends most of its time in computing; moments that are drawn over the whole time would hardly ever fall
between two changes on disk. So moments are also drawn among these changes, each with the same probability.
"""

import mmap
import os
import random
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# Of Python's audit events, those that change what is on disk.
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Seconds after a change: some kills fall into the writing that follows it.
_AFTER = 0.005


@dataclass(frozen=True)
class Moment:
    """A moment of a process. seconds: from its start, or from its `change`-th change to the files below a folder."""

    kind: Literal["time", "before a change", "after a change"]
    seconds: float = 0.0
    change: int = 0


def draw(numbers: random.Random, seconds: float, changes: int) -> Moment:
    """A moment of a command that takes so many seconds, and makes so many changes, when nothing disturbs it."""
    kind = numbers.choice(("time", "before a change", "after a change")) if changes else "time"
    if kind == "time":
        return Moment("time", numbers.uniform(0, seconds))
    after = 0.0 if kind == "before a change" else numbers.uniform(0, _AFTER)
    return Moment(kind, after, numbers.randint(1, changes))  # type: ignore[arg-type]


class Changes:
    """Counts the changes that a process makes below a folder or in a store, for its parent to read."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._count = mmap.mmap(-1, 8)  # shared with the processes that are forked from this one

    @property
    def count(self) -> int:
        return int(struct.unpack("q", self._count[:8])[0])

    def watch(self, moment: Moment | None, reached: Callable[[], None]) -> None:
        """From now on count this process's changes; at the moment's one die, or call `reached`."""

        def change() -> None:
            count = self.count + 1
            self._count[:8] = struct.pack("q", count)
            if moment is not None and count == moment.change:
                if moment.kind == "before a change":
                    os.killpg(0, signal.SIGKILL)
                reached()

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
            if (writes or event in _CHANGES) and self._is_ours(event, arguments):
                change()

        sys.addaudithook(hear)
        _watch_store(change)

    def _is_ours(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if isinstance(path, int):
            return False
        text = os.fsdecode(path)
        # A name relative to a folder's descriptor: shutil.rmtree.
        relative = not text.startswith("/") and event in ("os.remove", "os.rmdir") and arguments[-1] not in (None, -1)
        return relative or os.path.abspath(text).startswith(self._folder)


def _watch_store(change: Callable[[], None]) -> None:
    """Every question to a store is a change too: of the store, or of the cache."""
    from data_pipeline.shards.store_client import StoreClient

    real = StoreClient.ask

    def ask(*arguments: Any, **options: Any) -> Any:
        change()
        return real(*arguments, **options)

    StoreClient.ask = ask  # type: ignore[method-assign]
