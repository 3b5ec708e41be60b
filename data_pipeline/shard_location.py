"""Where the shards of a data set lie: in its own folder, or in that of a data set it was derived from (contract C1)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

SHARD_FOLDER = "shards"


def holder_of(root: Path, facts: Mapping[str, Any]) -> Path:
    """The data set's folder that holds a shard: `root`, or what the shard's `folder` refers to from there."""
    if "folder" not in facts:
        return root
    return Path(os.path.normpath(os.path.join(os.path.realpath(root), facts["folder"])))


def shard_location(root: Path, name: str, facts: Mapping[str, Any]) -> Path:
    """Where a shard (or its index) of the data set at `root` lies; facts: its entry in the shard table."""
    return holder_of(root, facts) / SHARD_FOLDER / name


def reference(root: Path, other: Path) -> str:
    """How the data set at `root` refers to another folder: relative in one file system, so that both can move."""
    # Through symbolic links, else `..` would mean another folder to whoever comes by one.
    here, there = os.path.realpath(root), os.path.realpath(other)
    return os.path.relpath(there, here) if os.stat(here).st_dev == os.stat(there).st_dev else there


def check_shard(root: Path, name: str, facts: Mapping[str, Any]) -> None:
    """UserError, with what to do, unless the shard is where it belongs and has its size."""
    shard, holder = shard_location(root, name, facts), holder_of(root, facts)
    found = shard.stat().st_size if shard.is_file() else None
    if found == facts["bytes"]:
        return
    what = "is missing" if found is None else f"has {found} bytes, not {facts['bytes']}"
    if "folder" not in facts:
        raise UserError(f"{shard}: the shard {what}; build or derive the data set again to write it anew")
    if not holder.is_dir():
        raise UserError(
            f"{root}: was derived from the data set at {holder}, which is not there; bring it back, or derive this "
            "one again from where the other is now"
        )
    raise UserError(
        f"{root}: was derived from the data set at {holder}, which has changed since: the shard {name} {what}; "
        "derive it again, or bring the old one back"
    )
