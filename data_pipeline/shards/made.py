"""Shards of rendered images, each with a journal, so that an interrupted derivation loses no finished shard.

The journal is written last, beside the shard. A resumed derivation renders only the shards that have none.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.catalog import Sample
from data_pipeline.disk import replace_through
from data_pipeline.shards.writer import PlannedShard, ShardSettings, encode_pixels, index_name, write_images

# The images, uint8 [H, W, 3] RGB, of the samples of one shard, in order.
Render = Callable[[Sequence[Sample]], Iterator[npt.NDArray[np.uint8]]]


@dataclass(frozen=True)
class MadeImage:
    """A rendered image in its shard."""

    id: str  # SHA-256 (hex) of the stored bytes
    offset: int  # of the stored bytes in the tar
    size: int  # of the stored bytes
    crc32: int
    width: int  # pixels
    height: int


@dataclass(frozen=True)
class MadeShard:
    """A finished shard, from its journal."""

    name: str
    bytes: int
    sha256: str
    images: tuple[MadeImage, ...]  # in the order of the planned samples


def make_shard(
    folder: Path, shard: PlannedShard, settings: ShardSettings, render: Render, advance: Callable[[], object]
) -> None:
    """Render and write a shard, then its journal. advance: callback after each image.

    Holds the shard's encoded images in memory: their order follows from their ids, the hashes of their bytes.
    """
    rows: list[Sample] = []
    encoded: dict[str, bytes] = {}  # by id: a shard holds equal images once
    for template, pixels in zip(shard.samples, render(shard.samples), strict=True):
        content = encode_pixels(pixels, settings)
        identity = hashlib.sha256(content).hexdigest()
        height, width = pixels.shape[:2]
        rows.append(dataclasses.replace(template, id=identity, width=width, height=height))
        encoded[identity] = content
        advance()
    by_id = {row.id: row for row in rows}
    ids = sorted(by_id)
    written = write_images(folder, shard.stem, settings.codec, ((by_id[name], encoded[name]) for name in ids))
    stored = dict(zip(ids, written.images, strict=True))
    images = [[row.id, *dataclasses.astuple(stored[row.id]), row.width, row.height] for row in rows]
    journal = {"name": written.name, "bytes": written.bytes, "sha256": written.sha256, "images": images}
    replace_through(_journal_path(folder, shard), json.dumps(journal).encode())


def read_made_shard(folder: Path, shard: PlannedShard) -> MadeShard | None:
    """The shard as its journal describes it; None when it is not finished."""
    try:
        journal = json.loads(_journal_path(folder, shard).read_text())
    except (OSError, ValueError):
        return None
    path = folder / journal["name"]
    # A power cut may keep the journal and lose the shard.
    if not is_whole(path, journal["bytes"]):
        return None
    return MadeShard(
        journal["name"], journal["bytes"], journal["sha256"], tuple(MadeImage(*image) for image in journal["images"])
    )


def is_whole(path: Path, size: int) -> bool:
    """Whether a shard is there at its size in bytes, with its index."""
    return path.is_file() and path.stat().st_size == size and path.with_name(index_name(path.name)).is_file()


def _journal_path(folder: Path, shard: PlannedShard) -> Path:
    return folder / f".made-{shard.plan}.json"
