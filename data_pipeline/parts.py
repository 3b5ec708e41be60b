"""Long sequences in parts, so that only a part of them is Python objects at a time."""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
PART = 16_384


def in_parts(items: Iterable[Item], size: int = PART) -> Iterator[list[Item]]:
    """Lists of at most `size` items, in order."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def release_memory() -> None:
    """Return to the system what many small parts have left free; without glibc, a no-op."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
