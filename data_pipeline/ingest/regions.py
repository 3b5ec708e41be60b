"""Regions of raw files: a path that ends in `#xywh=X,Y,WIDTH,HEIGHT` (W3C Media Fragments) is one cell of a field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FRAGMENT = re.compile(r"#xywh=([0-9]+),([0-9]+),([0-9]+),([0-9]+)\Z")


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in an upright picture, pixels."""

    x: int  # of its left edge
    y: int  # of its upper edge
    width: int
    height: int

    def __str__(self) -> str:
        return f"#xywh={self.x},{self.y},{self.width},{self.height}"


def split_region(path: str) -> tuple[str, Region | None]:
    """The path of the file, and the region; None for a whole file."""
    found = _FRAGMENT.search(path)
    return (path[: found.start()], Region(*map(int, found.groups()))) if found else (path, None)


def file_of(path: Path) -> Path:
    """The file that a path, with or without a region, is in."""
    return Path(split_region(str(path))[0])


def region_of(path: str | Path) -> Region | None:
    """The region that a path names; None for a whole file."""
    return split_region(str(path))[1]
