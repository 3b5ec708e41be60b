"""Filling an image bank by many processes; each shard of its arrays is written by one rank.

An interrupted bank is resumed, and a finished one grows, by making only the images that are missing. Until the last
rename a reader sees the earlier, smaller bank, or none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from data_pipeline.banks.image_bank import (
    ARRAYS,
    INDICES_PER_SHARD,
    LOCK_FILE,
    BankFacts,
    ImageBank,
    bank_lock,
    commit_manifest,
    content_hash,
    damage_is_users,
    hash_images,
    open_arrays,
    read_facts,
    read_manifest,
    write_facts,
)
from data_pipeline.disk import TEMPORARY_PREFIX, naming, sync
from data_pipeline.errors import UserError
from data_pipeline.progress_bar import progress_bar

# (cell type, indices [k]) -> images uint8 [k, S, S, 3] RGB and latents float32 [k, latent_size].
Draw = Callable[[str, npt.NDArray[np.int64]], tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]
_Block = dict[str, npt.NDArray[Any]]


def fill_bank(
    root: Path,
    facts: BankFacts,
    count: int,
    draw: Draw,
    *,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
    progress: bool = True,
) -> ImageBank:
    """Fill a bank up to `count` images of each type; returns the finished bank on every rank.

    An interrupted bank is resumed, a smaller one grows, a larger one is kept. barrier: returns when every rank has
    called it. UserError when the folder holds anything else, such as images of another generator, seed or types, or
    when another command is at work there.
    """
    root = Path(os.path.abspath(root))
    # Every rank looks before any writes, so all take the same branch.
    _refuse_other(root, facts)
    rows = count * len(facts.cell_types)
    if read_manifest(root) is not None:
        finished = ImageBank.open(root)  # a damaged bank does not grow
        if len(finished) >= rows:
            return finished
    barrier()  # all ranks have looked
    root.mkdir(parents=True, exist_ok=True)
    with naming(root), bank_lock(root) if rank == 0 else nullcontext():
        if rank == 0:
            _prepare(root, facts, rows)
        barrier()  # the arrays exist and are large enough
        mine = range(rank, -(-count // INDICES_PER_SHARD), world_size)
        _fill_shards(root, facts, count, draw, mine, progress and rank == 0)
        barrier()  # every shard is on disk
        if rank == 0:
            _finish(root, facts, rows)
        barrier()  # the bank is finished
    return ImageBank.open(root)


def _refuse_other(root: Path, facts: BankFacts) -> None:
    there = read_facts(root)
    if there is None:
        foreign = sorted(path.name for path in root.iterdir() if path.name != LOCK_FILE) if root.is_dir() else []
        # A file that an interrupted process was writing.
        foreign = [name for name in foreign if not name.endswith(".partial")]
        if foreign or (root.exists() and not root.is_dir()):
            raise UserError(f"{root}: no image bank, yet it holds {(foreign or ['a file'])[0]}; name a new folder")
    elif there.identity != facts.identity:
        raise UserError(f"{root}: holds images of {_difference(there, facts)}; name another folder")


def _difference(there: BankFacts, facts: BankFacts) -> str:
    if there.cell_types != facts.cell_types:
        return f"other cell types ({', '.join(there.cell_types)})"
    if there.made_by.get("seed") != facts.made_by.get("seed"):
        return f"another seed ({there.made_by.get('seed')})"
    return f"another generator ({there.made_by.get('name')}, checkpoint {str(there.made_by.get('checkpoint'))[:16]})"


def _prepare(root: Path, facts: BankFacts, rows: int) -> None:
    """Create or resize the group and its arrays, and remove incomplete files."""
    for path in [*root.rglob("*.partial"), *root.glob(f"{TEMPORARY_PREFIX}*")]:
        path.unlink()
    if read_facts(root) is None:
        write_facts(root, facts)
    side, shard = facts.image_size, INDICES_PER_SHARD * len(facts.cell_types)
    # A chunk is one image, so that a reader takes any image without its neighbours.
    layouts: dict[str, tuple[tuple[int, ...], Any, dict[str, Any]]] = {
        "images": ((side, side, 3), np.uint8, {"chunks": (1, side, side, 3), "shards": (shard, side, side, 3)}),
        "latents": ((facts.latent_size,), np.float32, {"chunks": (shard, facts.latent_size), "fill_value": np.nan}),
        "labels": ((), np.int64, {"chunks": (shard,)}),
        "sha256": ((32,), np.uint8, {"chunks": (shard, 32)}),
    }
    for name in ARRAYS:
        shape, dtype, layout = layouts[name]
        if (root / name / "zarr.json").exists():
            with damage_is_users(root):
                array = zarr.open_array(str(root / name), mode="r+")
                if array.shape[1:] != shape or array.dtype != dtype:
                    raise ValueError(f"{name}: another shape")
            array.resize((rows, *shape))
        else:
            options = {"fill_value": 0, **layout}
            zarr.create_array(str(root / name), shape=(rows, *shape), dtype=dtype, zarr_format=3, **options)


def _fill_shards(root: Path, facts: BankFacts, count: int, draw: Draw, shards: range, progress: bool) -> None:
    """Make the missing images of this rank's shards."""
    types = len(facts.cell_types)
    with damage_is_users(root):
        arrays = open_arrays(root, "r+")
        made = arrays["sha256"][:].any(axis=1).reshape(count, types).all(axis=1)
    wanted = {shard: range(shard * INDICES_PER_SHARD, min(count, (shard + 1) * INDICES_PER_SHARD)) for shard in shards}
    whole = {shard: int(made[indices.start : indices.stop].sum()) for shard, indices in wanted.items()}
    total = sum(map(len, wanted.values())) * types
    with progress_bar(total, "making images", "image", initial=sum(whole.values()) * types, enabled=progress) as bar:
        for shard, indices in wanted.items():
            if whole[shard] < len(indices):
                old = slice(indices.start * types, (indices.start + whole[shard]) * types)
                new = _draw_rows(facts, draw, np.arange(indices.start + whole[shard], indices.stop), bar.update)
                block = {name: np.concatenate([kept, new[name]]) for name, kept in _kept(root, arrays, old).items()}
                _write_shard(root, arrays, shard, old.start, block)


def _kept(root: Path, arrays: dict[str, Any], rows: slice) -> _Block:
    """The finished rows of a shard, which are written again with the new ones. UserError when they are damaged."""
    with damage_is_users(root):
        kept = {name: arrays[name][rows] for name in ARRAYS}
        if not np.array_equal(hash_images(kept["images"]), kept["sha256"]):
            raise ValueError("images changed")
    return kept


def _draw_rows(
    facts: BankFacts, draw: Draw, indices: npt.NDArray[np.int64], advance: Callable[[int], object]
) -> _Block:
    """New rows of every array for these indices, all types."""
    images, latents = [], []
    for cell_type in facts.cell_types:
        of_type, numbers = draw(cell_type, indices)
        images.append(of_type)
        latents.append(numbers)
        advance(len(indices))
    # [k, types, ...] -> [k * types, ...]: the types of one index are adjacent.
    joined = np.stack(images, axis=1).reshape(-1, *images[0].shape[1:])
    return {
        "images": joined,
        "latents": np.stack(latents, axis=1).reshape(-1, facts.latent_size),
        "labels": np.tile(np.arange(len(facts.cell_types)), len(indices)),
        "sha256": hash_images(joined),
    }


def _write_shard(root: Path, arrays: dict[str, Any], shard: int, first: int, block: _Block) -> None:
    """Write a shard of every array, the hashes last, when the rest is on disk: they mark the rows as complete."""
    for name in ARRAYS:
        arrays[name][first : first + len(block[name])] = block[name]
        chunks = root / name / "c"
        mine = chunks / str(shard)
        for path in (*mine.rglob("*"), mine, chunks):
            sync(path)


def _finish(root: Path, facts: BankFacts, rows: int) -> None:
    arrays = open_arrays(root)
    labels, digests = arrays["labels"][:rows], arrays["sha256"][:rows]
    if not digests.any(axis=1).all():
        raise RuntimeError(f"{root}: a shard was not made by its rank")
    commit_manifest(root, {"images": rows, "content_hash": content_hash(facts, labels, digests), "scores": {}})
    shutil.rmtree(root / "scores", ignore_errors=True)  # they covered fewer images
