"""Data sets of a million rows without a million files: for the measure of what a row costs.

A raw layout lists images that are not there. Their ids and perceptual hashes are made from their paths, and each shard
is one picture, in which all its rows are stored. All else is a build's own work.
"""

import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest import scan, write_shards
from data_pipeline.ingest.images import ImageFacts
from data_pipeline.shards.writer import ShardTask, StoredImage, WrittenShard, index_name
from data_pipeline.sources import SourceDeclaration, Survey
from data_pipeline.sources.declaration import RawImage, raw_layout
from data_pipeline.sources.raw_images import RawImages

SIDE = 48
_CELLS_OF_A_SLIDE = 500


def declare(folder: Path, name: str, rows: int) -> SourceDeclaration:
    """A source of so many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / f"{name}.txt"
    listed.write_text(str(rows))
    return SourceDeclaration("forged", name, listed, "phantom")


@raw_layout("forged", "a file with the number of rows", is_file=True)
def survey(declaration: SourceDeclaration) -> Survey:
    """Paths of usual length, sorted; a slide for every 500 cells."""
    rows = range(int(declaration.root.read_text()))

    def each() -> Iterator[RawImage]:
        for row in rows:
            label, slide = CELL_TYPES[row % len(CELL_TYPES)], f"slide_{row // _CELLS_OF_A_SLIDE:06}"
            path = f"{declaration.name}/{slide}/cell_{row:09}.png"
            yield RawImage(path, label, label, slide, declaration.domain, None, listed=True)

    return Survey(RawImages.of(each()), [])


@contextmanager
def forging() -> Iterator[None]:
    """While it lasts, builds of this process read no image and write no pictures."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(scan, "_identify", _identify))
        stack.enter_context(mock.patch.object(scan, "_inspect", _inspect))
        stack.enter_context(mock.patch.object(write_shards, "write_shard", _write_shard))
        yield


def _identify(path: Path) -> scan._Identity:
    return scan._Identity(hashlib.sha256(str(path).encode()).hexdigest())


def _inspect(file: tuple[str, Path]) -> ImageFacts:
    return ImageFacts(SIDE, SIDE, hashlib.sha256(file[0].encode()).digest(), "")


def _write_shard(task: ShardTask) -> WrittenShard:
    assert isinstance(task.folder, Path)
    content = _picture()
    name = f"{task.shard.stem}-{task.shard.plan[:16]}.tar"
    (task.folder / name).write_bytes(content)
    (task.folder / index_name(name)).touch()
    image = StoredImage(0, len(content), zlib.crc32(content))
    return WrittenShard(name, len(content), task.shard.plan, (image,) * len(task.shard.samples))


def _picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), 200, np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()
