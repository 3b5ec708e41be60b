"""A process that dies by SIGKILL between two of its calls to the operating system."""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

# What changes or secures something on disk.
DISK_CALLS = ("replace", "fsync", "mkdir", "unlink", "open")


def die_before(step: int, names: Sequence[str] = DISK_CALLS) -> None:
    """From now on this process is killed before its `step`-th call of these functions of `os`."""
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in names:
        setattr(os, name, dying(getattr(os, name)))
