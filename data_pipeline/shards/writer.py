"""Shards: WebDataset tars whose bytes are a pure function of the samples in them.

Partitioned by source, split and a binary trie over the bits of the ids; members ordered by id; fixed mode, owner and
time. A shard's name ends in the hash of its bytes, so two different shards never share a name.
"""

import hashlib
import io
import json
import tarfile
import zlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.catalog import SPLITS, Sample
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import aside, put_in_place, temporary_folder
from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.images import DECODING, decode_rgb
from data_pipeline.ingest.regions import Region, region_of
from data_pipeline.ingest.scan import read_unchanged
from data_pipeline.shards.store import Root, Store

Codec = Literal["jpeg", "png"]
# Increased when the bytes of a shard change; every shard is then written anew by the next build. 1: the project's own
# tar writer; 2: webdataset's, which orders the members of a sample by extension.
LAYOUT = 2
_EXTENSIONS = {"jpeg": "jpg", "png": "png"}
_INDEX_VERSION = "v1.2"  # of DALI's wds2idx


@dataclass(frozen=True)
class ShardSettings:
    """How every image of a data set is stored: one codec and, with stored_size, one size."""

    codec: Codec = "jpeg"
    quality: int = 95  # of JPEG, without chroma subsampling
    stored_size: int | None = None  # side of the square, pixels; None keeps each size
    max_samples: int = 1024  # in one shard

    def __post_init__(self) -> None:
        if self.codec not in get_args(Codec):
            raise UserError(f"codec={self.codec}: use one of {', '.join(get_args(Codec))}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality}: use 1 to 100")
        if self.stored_size is not None and not 8 <= self.stored_size <= 8192:
            raise UserError(f"stored_size={self.stored_size}: use 8 to 8192 pixels, or leave it out")
        if self.max_samples < 1:
            raise UserError(f"max_samples={self.max_samples}: must be at least 1, the images in a shard")


@dataclass(frozen=True)
class PlannedShard:
    """The samples of one shard."""

    stem: str  # <source>-<split>-<trie prefix>
    samples: tuple[Sample, ...]  # ordered by id
    plan: str  # hash of everything that decides the shard's bytes


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
    """What a worker needs to write one shard."""

    folder: Root  # of the shards, on a disk or in a store
    shard: PlannedShard
    raw_folder: Path
    settings: ShardSettings


def encode_image(
    raw: bytes, codec: Codec, stored_size: int | None, quality: int = 95, region: Region | None = None
) -> bytes:
    """Decode a raw file, or a region of it, and encode it as `encode_pixels` does. Raises as `decode_rgb`."""
    return _encode(decode_rgb(raw, region), codec, stored_size, quality)


def encode_pixels(pixels: npt.NDArray[np.uint8], settings: ShardSettings) -> bytes:
    """Encode RGB pixels, uint8 [H, W, 3], as JPEG without chroma subsampling or lossless PNG.

    With stored_size the central square is cropped and resized (Lanczos): squeezing would change the shape of cells.
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
    # A new image of the pixels alone: profiles and comments of the old one are not stored.
    image = Image.frombytes("RGB", image.size, image.tobytes())
    encoded = io.BytesIO()
    if codec == "jpeg":
        image.save(encoded, "JPEG", quality=quality, subsampling="4:4:4")
    else:
        image.save(encoded, "PNG")
    return encoded.getvalue()


def plan_shards(samples: Iterable[Sample], settings: ShardSettings) -> list[PlannedShard]:
    """Partition the kept samples into shards: a pure function of the set of samples and the settings."""
    parts: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for row in samples:
        if row.kept:
            parts[row.source, row.split].append(row)
    planned = []
    for source, split in sorted(parts, key=lambda part: (part[0], SPLITS.index(part[1]))):
        ordered = sorted(parts[source, split], key=lambda row: row.id)
        for prefix, leaf in trie_leaves([row.id for row in ordered], settings.max_samples):
            planned.append(plan_shard(shard_stem(source, split, prefix), ordered[leaf], settings))
    return planned


def shard_stem(source: str, split: str, prefix: str) -> str:
    """Beginning of a shard's name. prefix: bits that the ids of its samples begin with."""
    return f"{source}-{split}-{prefix or 'root'}"


def plan_shard(stem: str, members: Sequence[Sample], settings: ShardSettings) -> PlannedShard:
    """The shard of these samples, which are ordered by id."""
    return PlannedShard(stem, tuple(members), _plan_hash(stem, members, settings))


def trie_leaves(ids: Sequence[str], max_samples: int) -> list[tuple[str, slice]]:
    """Non-empty leaves of a binary trie over sorted hexadecimal ids: (prefix in bits, slice of ids).

    A leaf is split at its next bit only when it holds more than max_samples: new ids change only their own leaves.
    """
    leaves: list[tuple[str, slice]] = []
    # A stack of (prefix, first, last), the lower half on top: leaves come in order.
    waiting = [("", 0, len(ids))]
    while waiting:
        bits, first, last = waiting.pop()
        if last - first <= max_samples:
            if last > first:
                leaves.append((bits, slice(first, last)))
            continue
        digit, bit = divmod(len(bits), 4)
        middle = bisect_left(ids, 1, first, last, key=partial(_bit, digit=digit, bit=3 - bit))
        waiting.append((bits + "1", middle, last))
        waiting.append((bits + "0", first, middle))
    return leaves


def _bit(identity: str, digit: int, bit: int) -> int:
    return int(identity[digit], 16) >> bit & 1


def _facts(row: Sample) -> dict[str, Any]:
    """The json member of a sample: only facts that cannot change while image and label stay."""
    names = ("id", "source", "domain", "source_label", "cell_type", "group", "origin", "parent")
    return {name: getattr(row, name) for name in (*names, "width", "height", "microns_per_pixel")}


def _plan_hash(stem: str, members: Sequence[Sample], settings: ShardSettings) -> str:
    # max_samples decides which samples are in the shard, not their bytes.
    encoding = {name: value for name, value in asdict(settings).items() if name != "max_samples"}
    plan = [LAYOUT, DECODING, stem, encoding, [_facts(row) for row in members]]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def write_shard(task: ShardTask) -> WrittenShard:
    """Encode raw files and write their shard; for a store through a temporary folder, as its name needs its hash.

    UserError when a raw file has changed since it was scanned; OSError of the disk.
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
    """Write a shard and its index, under temporary names until both are on disk.

    stored: rows and their encoded images, each row once; the members of a sample are named after its id.
    """
    from webdataset import TarWriter  # here: it imports torch, which takes seconds

    rows: list[tuple[str, int]] = []  # name of the image's member, CRC-32
    with aside(folder / f"{stem}.tar") as tar, aside(folder / f"{stem}.idx") as index:
        with tar.open("wb") as file, TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
            for row, encoded in stored:
                members = {"__key__": row.id, _EXTENSIONS[codec]: encoded}
                members["json"] = json.dumps(_facts(row), sort_keys=True).encode()
                if row.cell_type:
                    members["cls"] = str(CELL_TYPES.index(row.cell_type)).encode()
                writer.write(members)
                rows.append((f"{row.id}.{_EXTENSIONS[codec]}", zlib.crc32(encoded)))
        with tar.open("rb") as whole:
            sha256 = hashlib.file_digest(whole, "sha256").hexdigest()
        members_of = tar_members(tar)
        place = {name: (offset, size) for name, offset, size in members_of}
        images = tuple(StoredImage(*place[name], crc32) for name, crc32 in rows)
        written = WrittenShard(f"{stem}-{sha256[:16]}.tar", tar.stat().st_size, sha256, images)
        index.write_text(index_text(members_of))
        put_in_place(index, folder / index_name(written.name))  # first: a shard that is there has its index
        put_in_place(tar, folder / written.name)
    return written


def _encode_sample(row: Sample, task: ShardTask) -> bytes:
    raw = read_unchanged(on_disk(task.raw_folder, row.path), row.id)
    settings = task.settings
    return encode_image(raw, settings.codec, settings.stored_size, settings.quality, region_of(row.path))


def tar_members(path: Path) -> list[tuple[str, int, int]]:
    """Name, offset and size (bytes) of the content of each member of a tar, in order."""
    with tarfile.open(path, "r:") as tar:
        return [(member.name, member.offset_data, member.size) for member in tar]


def index_name(shard: str) -> str:
    """The file name of a shard's index."""
    return shard.removesuffix(".tar") + ".idx"


def index_text(members: Iterable[tuple[str, int, int]]) -> str:
    """The index that DALI's wds2idx writes: a line for each sample, `extension offset size name` for each member."""
    samples: dict[str, list[str]] = {}
    for name, offset, size in members:
        key, _, extension = name.partition(".")
        samples.setdefault(key, []).append(f"{extension} {offset} {size} {name}")
    return "\n".join([f"{_INDEX_VERSION} {len(samples)}", *map(" ".join, samples.values()), ""])
