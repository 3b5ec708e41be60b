"""Check every byte of a data set against its catalogue."""

import hashlib
import mmap
import zlib
from collections import defaultdict
from pathlib import Path

from data_pipeline.catalog import Dataset, Sample, check_invariants, content_hash, from_table
from data_pipeline.disk import temporary_folder
from data_pipeline.errors import UserError
from data_pipeline.partitions import PARTITION_FOLDER
from data_pipeline.progress_bar import progress_bar
from data_pipeline.shards.build_files import BUILT
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.location import SHARD_FOLDER
from data_pipeline.shards.store import Root, Store
from data_pipeline.shards.writer import LAYOUT, index_name, index_text, tar_members

_MEND = "delete this file and build, or derive, the data set again"


def older_layout(dataset: Dataset) -> str:
    """What to do about a data set whose shards are of an older layout, which can still be read; '' for any other."""
    layout = dataset.metadata.get("layout", 1)
    if layout == LAYOUT:
        return ""
    built = dataset.metadata["made_by"] == BUILT
    how = f"build_shards.py shards={dataset.root}" if built else "the command that derived it, given again,"
    return f"{dataset.root}: its shards are of layout {layout}; {how} writes them anew in layout {LAYOUT}"


def verify_dataset(root: str | Root, progress: bool = True) -> str:
    """Check size and SHA-256 of every shard, every index, every stored image's CRC-32; returns `older_layout`.

    Includes the shards of parents and the attachments. Shards of a store are fetched one by one, whatever the cache
    holds. UserError names the first shard that is not as committed, and the first bad sample in it.
    """
    with temporary_folder() as temporary:
        dataset = Dataset.open(root, ShardCache(temporary))
        for name, facts in dataset.metadata.get("partitions", {}).items():
            if _sha256_of(dataset.root, f"{PARTITION_FOLDER}/{name}") != facts["sha256"]:
                raise UserError(f"{dataset.root}/{PARTITION_FOLDER}/{name}: bytes changed; {_MEND}")
        samples = from_table(dataset.table)
        if content_hash(samples) != dataset.content_hash:
            raise UserError(f"{root}: the catalogue is not the one that was committed; build the data set again")
        check_invariants(dataset.table, dataset.metadata["shards"])
        for name in dataset.metadata.get("attachments", {}):
            dataset.attachment_path(name)
        by_shard: dict[str, list[Sample]] = defaultdict(list)
        for row in samples:
            if row.kept:
                by_shard[row.shard].append(row)
        total = sum(facts["bytes"] for facts in dataset.metadata["shards"].values())
        with progress_bar(total, "verifying", "B", unit_scale=True, enabled=progress) as bar:
            for name, facts in sorted(dataset.metadata["shards"].items()):
                path, holder = dataset.shard_path(name), dataset.shard_files.holder(name)
                _verify_shard(path, facts["sha256"], by_shard[name])
                if _read_index(holder, name) != index_text(tar_members(path)).encode():
                    index = f"{holder}/{SHARD_FOLDER}/{index_name(name)}"
                    raise UserError(f"{index}: missing or not the index of the shard beside it; {_MEND}")
                if isinstance(holder, Store):
                    path.unlink()
                bar.update(facts["bytes"])
        return older_layout(dataset)


def _sha256_of(root: Root, name: str) -> str:
    if isinstance(root, Store):
        return hashlib.sha256(root.read(name)).hexdigest()
    with (root / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify_shard(path: Path, sha256: str, rows: list[Sample]) -> None:
    rows.sort(key=lambda row: row.offset or 0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for row in rows:
            assert row.offset is not None
            assert row.size is not None
            if zlib.crc32(content[row.offset : row.offset + row.size]) != row.crc32:
                sample = f"{row.id} ({row.source}:{row.path})"
                raise UserError(f"{path}: bytes changed, first in sample {sample}; {_MEND}")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path}: bytes changed outside the images (labels or facts); {_MEND}")


def _read_index(holder: Root, shard: str) -> bytes | None:
    name = f"{SHARD_FOLDER}/{index_name(shard)}"
    try:
        return holder.read(name) if isinstance(holder, Store) else (holder / name).read_bytes()
    except FileNotFoundError:
        return None
