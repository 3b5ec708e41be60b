"""Long sequences in parts, so that only a part of them is Python objects at a time."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
PART = 16_384


def in_parts(items: Iterable[Item], size: int = PART) -> Iterator[list[Item]]:
    """Lists of at most `size` items, in order."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
