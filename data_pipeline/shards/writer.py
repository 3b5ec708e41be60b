"""Shards: WebDataset tars that are a pure function of the samples in them.

Partitioned by source, split, and a binary trie over the ids' bits; members in the order of the ids;
fixed mode, owner and time. The name ends in the hash of the bytes, so two shards never share one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.catalog import SPLITS, Sample
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import TEMPORARY_PREFIX, write_through
from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.images import DECODING, decode_rgb
from data_pipeline.ingest.scan import read_unchanged
from data_pipeline.shards.store import Root, Store
from data_pipeline.temporary import temporary_folder

Codec = Literal["jpeg", "png"]

# wds2idx of DALI writes this version.
_INDEX_VERSION = "v1.2"
_EXTENSIONS = {"jpeg": "jpg", "png": "png"}
# Raised by one when the layout of a shard changes, so that every shard is written anew.
_LAYOUT = 1


@dataclass(frozen=True)
class ShardSettings:
    """How every image of a data set is stored: one codec and, with stored_size, one size (pixels, square)."""

    codec: Codec = "jpeg"
    quality: int = 95  # of JPEG, without chroma subsampling
    stored_size: int | None = None
    max_samples: int = 1024  # in one shard

    def __post_init__(self) -> None:
        if self.codec not in get_args(Codec):
            raise UserError(f"codec {self.codec!r}: use one of {', '.join(get_args(Codec))}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality {self.quality}: use 1 to 100")
        if self.stored_size is not None and not 8 <= self.stored_size <= 8192:
            raise UserError(f"stored_size {self.stored_size}: use 8 to 8192 pixels, or leave it out")
        if self.max_samples < 1:
            raise UserError(f"max_samples {self.max_samples}: a shard holds at least one sample")


@dataclass(frozen=True)
class PlannedShard:
    """The samples of one shard, in order, and the hash of everything that decides its bytes."""

    stem: str  # <source>-<split>-<trie prefix>
    samples: tuple[Sample, ...]
    plan: str


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Where a sample's image lies in its shard."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class WrittenShard:
    """A shard under its final name."""

    name: str
    bytes: int
    sha256: str
    images: tuple[StoredImage, ...]


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to write one shard. `folder`: where it is to lie, on a disk or in a store."""

    folder: Root
    shard: PlannedShard
    raw_folder: Path
    settings: ShardSettings


def encode_image(raw: bytes, codec: Codec, stored_size: int | None, quality: int = 95) -> bytes:
    """Decode a raw file of any kind to RGB and encode it as a data set stores it (`encode_pixels`).

    UnreadableImage for bytes that are no image.
    """
    return _encode(decode_rgb(raw), codec, stored_size, quality)


def encode_pixels(pixels: npt.NDArray[np.uint8], settings: ShardSettings) -> bytes:
    """Encode RGB pixels, uint8 [H, W, 3], as a data set stores an image.

    With stored_size the middle square is cut out and resized (Lanczos): squeezing would change the shape
    of cells. JPEG without chroma subsampling, or lossless PNG.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an image of {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3]")
    return _encode(Image.fromarray(pixels), settings.codec, settings.stored_size, settings.quality)


def _encode(image: Image.Image, codec: Codec, stored_size: int | None, quality: int) -> bytes:
    if stored_size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((stored_size, stored_size), Image.Resampling.LANCZOS)
    # Pixels alone, in a new image: what hangs on the old one (profiles, comments) is not stored.
    image = Image.frombytes("RGB", image.size, image.tobytes())
    encoded = io.BytesIO()
    if codec == "jpeg":
        image.save(encoded, "JPEG", quality=quality, subsampling="4:4:4")
    else:
        image.save(encoded, "PNG")
    return encoded.getvalue()


def plan_shards(samples: Iterable[Sample], settings: ShardSettings) -> list[PlannedShard]:
    """Partition the kept samples: a pure function of them and the settings, whatever their order."""
    parts: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for row in samples:
        if row.kept:
            parts[row.source, row.split].append(row)
    planned = []
    for source, split in sorted(parts, key=lambda part: (part[0], SPLITS.index(part[1]))):
        ordered = sorted(parts[source, split], key=lambda row: row.id)
        for prefix, leaf in trie_leaves([row.id for row in ordered], settings.max_samples):
            members = tuple(ordered[leaf])
            stem = f"{source}-{split}-{prefix or 'root'}"
            planned.append(PlannedShard(stem, members, _plan_hash(stem, members, settings)))
    return planned


def trie_leaves(ids: Sequence[str], max_samples: int) -> list[tuple[str, slice]]:
    """Leaves of a binary trie over sorted hexadecimal ids: (prefix in bits, slice of ids), none empty.

    A leaf is parted at its next bit only when it holds too many: growth touches the leaf that grows.
    """
    leaves: list[tuple[str, slice]] = []
    # (prefix, first, last) still to be looked at; a stack, with the lower half on top, keeps the order.
    waiting = [("", 0, len(ids))]
    while waiting:
        bits, first, last = waiting.pop()
        if last - first <= max_samples:
            if last > first:
                leaves.append((bits, slice(first, last)))
            continue
        digit, bit = divmod(len(bits), 4)
        middle = first
        while middle < last and not (int(ids[middle][digit], 16) >> (3 - bit)) & 1:
            middle += 1
        waiting.append((bits + "1", middle, last))
        waiting.append((bits + "0", first, middle))
    return leaves


def _facts(row: Sample) -> dict[str, Any]:
    """What the json member of a sample tells: nothing that can change while image and label stay."""
    names = ("id", "source", "domain", "source_label", "cell_type", "group", "origin", "parent")
    return {name: getattr(row, name) for name in (*names, "width", "height", "microns_per_pixel")}


def _plan_hash(stem: str, members: Sequence[Sample], settings: ShardSettings) -> str:
    # How many samples a shard may hold decides which samples these are, not their bytes.
    encoding = {name: value for name, value in asdict(settings).items() if name != "max_samples"}
    plan = [_LAYOUT, DECODING, stem, encoding, [_facts(row) for row in members]]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


class _TarWriter:
    """A tar in USTAR format, written front to back, hashed as it grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a member; the offset of its content."""
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(content), 0o444, 0
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self.bytes
        self._write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def finish(self) -> str:
        """End the archive, through to the disk; its SHA-256."""
        end = self.bytes + 2 * tarfile.BLOCKSIZE
        self._write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)


def write_shard(task: ShardTask) -> WrittenShard:
    """Write the shard of raw files (`write_images`).

    For a store it is written to a temporary folder first, for its name tells its bytes.
    UserError when a raw file is no longer the one that was scanned; OSError when the disk does not take it.
    """
    images = ((row, _encode_sample(row, task)) for row in task.shard.samples)
    stem, codec = task.shard.stem, task.settings.codec
    if not isinstance(task.folder, Store):
        return write_images(task.folder, stem, codec, images)
    with temporary_folder() as temporary:
        written = write_images(temporary, stem, codec, images)
        for name in (index_name(written.name), written.name):  # a shard that is there has its index
            task.folder.put_file(name, temporary / name)
    return written


def write_images(folder: Path, stem: str, codec: Codec, stored: Iterable[tuple[Sample, bytes]]) -> WrittenShard:
    """Write a shard and its index beside it: under temporary names first, renamed when they are on disk.

    stored: rows with their encoded images, none twice; each is named after its row's id.
    """
    temporary = folder / f"{TEMPORARY_PREFIX}{stem}-{socket.gethostname()}-{os.getpid()}"
    tar, index = temporary.with_name(temporary.name + ".tar"), temporary.with_name(temporary.name + ".idx")
    writer = _TarWriter(tar)
    try:
        images: list[StoredImage] = []
        lines: list[str] = []
        for row, encoded in stored:
            members = {_EXTENSIONS[codec]: encoded}
            if row.cell_type:
                members["cls"] = str(CELL_TYPES.index(row.cell_type)).encode()
            members["json"] = json.dumps(_facts(row), sort_keys=True).encode()
            parts = []
            for extension, content in members.items():
                name = f"{row.id}.{extension}"
                offset = writer.add(name, content)
                parts.append(f"{extension} {offset} {len(content)} {name}")
                if content is encoded:
                    images.append(StoredImage(offset, len(content), zlib.crc32(content)))
            lines.append(" ".join(parts))
        sha256 = writer.finish()
        write_through(index, index_text(lines).encode())
    except BaseException:
        writer.close()
        tar.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
        raise
    name = f"{stem}-{sha256[:16]}.tar"
    os.replace(index, folder / index_name(name))
    os.replace(tar, folder / name)
    return WrittenShard(name, writer.bytes, sha256, tuple(images))


def _encode_sample(row: Sample, task: ShardTask) -> bytes:
    raw = read_unchanged(on_disk(task.raw_folder, row.path), row.id)
    return encode_image(raw, task.settings.codec, task.settings.stored_size, task.settings.quality)


def index_name(shard: str) -> str:
    """The name of a shard's index."""
    return shard.removesuffix(".tar") + ".idx"


def index_text(lines: Sequence[str]) -> str:
    """An index as DALI's wds2idx writes it: per sample a line of `extension offset size name`, repeated."""
    return "\n".join([f"{_INDEX_VERSION} {len(lines)}", *lines, ""])
