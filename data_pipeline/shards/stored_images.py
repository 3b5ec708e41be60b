"""Encoding, size and perceptual hashes of stored images, read from the shards: an audit trusts no recorded facts."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from data_pipeline.catalog import CATALOG_SCHEMA, Dataset, Sample
from data_pipeline.errors import UserError
from data_pipeline.ingest.duplicates import near_pairs
from data_pipeline.ingest.images import HASH_BYTES, perceptual_hash
from data_pipeline.parallel import process_map
from data_pipeline.progress_bar import progress_bar
from data_pipeline.shards.reader import PLACE_COLUMNS, ShardBytes, places_of

# All mirror images and quarter turns of a picture, the identity first.
SYMMETRIES: tuple[Image.Transpose | None, ...] = (None, *Image.Transpose)
_IMAGES_PER_TASK = 256
# Encoding, size and hashes under each symmetry.
_Facts = tuple[str, tuple[int, int], bytes]
_NOTHING: _Facts = ("", (0, 0), b"")


@dataclass(frozen=True)
class StoredImages:
    """What was found in the stored images of n samples, in their order."""

    encodings: list[str]  # format; of a JPEG with a hash of its quantisation tables, which its quality decides
    sizes: list[tuple[int, int]]  # width, height in pixels
    hashes: npt.NDArray[np.uint8]  # [n, 8, HASH_BYTES], a perceptual hash under each of SYMMETRIES


@dataclass(frozen=True)
class NearPair:
    """Two samples of different splits whose pictures are nearly the same, one perhaps mirrored or turned."""

    one: int  # row
    other: int  # row
    distance: int  # bits


def inspect_stored(dataset: Dataset, samples: Sequence[Sample], workers: int, progress: bool = True) -> StoredImages:
    """Decode the stored image of every sample. UserError for bytes that have changed, or are no image."""
    schema = pa.schema(map(CATALOG_SCHEMA.field, PLACE_COLUMNS))
    rows = pa.record_batch({name: [getattr(row, name) for row in samples] for name in PLACE_COLUMNS}, schema=schema)
    number = {"row": lambda part: np.arange(part.num_rows)}
    places, columns = places_of([rows], len(samples), sorted(dataset.metadata["shards"]), number)
    # Shard by shard: each shard of a store is fetched once.
    order = np.lexsort((places.offsets, places.shards))
    shards = ShardBytes(dataset, places)
    parts = (order[start : start + _IMAGES_PER_TASK] for start in range(0, len(order), _IMAGES_PER_TASK))
    tasks = ([encoded.tobytes() for encoded in shards.read(rows)] for rows in parts)  # read when their turn comes
    found: list[_Facts] = []
    with progress_bar(len(samples), "looking at images", "image", enabled=progress) as bar:
        for part in process_map(_inspect, tasks, workers):
            found += part
            bar.update(len(part))
    facts: list[_Facts] = [_NOTHING] * len(samples)
    for row, fact in zip(columns["row"][order], found, strict=True):
        if fact == _NOTHING:
            shard = dataset.shard_path(samples[row].shard)
            raise UserError(f"{shard}: sample {samples[row].id} is no image: build the data set again")
        facts[row] = fact
    hashes = b"".join(hashed for _, _, hashed in facts)
    return StoredImages(
        [encoding for encoding, _, _ in facts],
        [size for _, size, _ in facts],
        np.frombuffer(hashes, np.uint8).reshape(-1, len(SYMMETRIES), HASH_BYTES),
    )


def near_pairs_across(hashes: npt.NDArray[np.uint8], split: npt.NDArray[np.int64], max_distance: int) -> list[NearPair]:
    """Images of different splits that are nearly the same, mirrored and turned ones too; each pair once, nearest first.

    hashes: as in StoredImages; split: int64 [n]. One of several images of a split with equal hashes stands for all.
    Sub-quadratic, as `near_pairs`.
    """
    if not len(hashes):
        return []
    kinds = hashes.shape[1]
    # Equal rows of one split become one: a thousand blank images would make half a million pairs.
    rows = np.concatenate([hashes.reshape(-1, HASH_BYTES), np.repeat(split, kinds)[:, None].astype(np.uint8)], axis=1)
    distinct, first = np.unique(rows, axis=0, return_index=True)
    bits, side = np.ascontiguousarray(distinct[:, :HASH_BYTES]), distinct[:, HASH_BYTES]
    nearest: dict[tuple[int, int], int] = {}
    for one, other in near_pairs(bits, max_distance):
        across = side[one] != side[other]
        one, other = one[across], other[across]
        distances = np.bitwise_count(bits[one] ^ bits[other]).sum(axis=1)
        for left, right, distance in zip(first[one] // kinds, first[other] // kinds, distances, strict=True):
            pair = (int(min(left, right)), int(max(left, right)))
            nearest[pair] = min(int(distance), nearest.get(pair, max_distance))
    return [NearPair(*pair, distance) for pair, distance in sorted(nearest.items(), key=lambda item: (item[1], item))]


def _inspect(images: list[bytes]) -> list[_Facts]:
    """Encoding, size and hashes of each image; _NOTHING for bytes that are no image."""
    found = []
    for encoded in images:
        try:
            image = Image.open(io.BytesIO(encoded))
            image.load()
        except (OSError, UnidentifiedImageError):
            found.append(_NOTHING)
            continue
        grey = image.convert("L")
        turned = [grey if symmetry is None else grey.transpose(symmetry) for symmetry in SYMMETRIES]
        found.append((_encoding(image), image.size, b"".join(map(perceptual_hash, turned))))
    return found


def _encoding(image: Image.Image) -> str:
    tables = getattr(image, "quantization", None)
    if not tables:
        return str(image.format)
    return f"{image.format} (tables {hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:8]})"
