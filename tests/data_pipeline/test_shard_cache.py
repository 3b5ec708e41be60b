"""If these fail, training from a store sees other images than from a disk, fetches them again and again, or stops."""

import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.shards.cache import ShardCache
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.read_ahead import ReadAhead
from data_pipeline.stream.stream import Stream
from tests.conftest import TINY_TYPES
from tests.s3_server import BUCKET, S3Server

URL = f"s3://{BUCKET}/tiny"


@pytest.fixture
def stored(s3: S3Server, tiny_dataset: Dataset) -> S3Server:
    """The tiny data set in the store."""
    s3.fill(tiny_dataset.root, "tiny")
    s3.requests.clear()
    return s3


def open_stream(dataset: Dataset, training: bool = True, **data: object) -> Stream:
    return Stream(
        dataset,
        StreamConfig(image_size=24, threads=1, window=16, **data),  # type: ignore[arg-type]
        splits=["train"] if training else ["test"],
        cell_types=TINY_TYPES,
        global_batch=8,
        training=training,
    )


def read_epoch(stream: Stream) -> Iterator[float]:
    """A number for each batch that tells its pixels."""
    for batch in itertools.islice(stream.read(), stream.batches_per_epoch):
        yield float(batch.images.double().sum())


def cached(cache: ShardCache) -> dict[str, int]:
    whole = (path for path in cache.folder.glob("*.tar") if not path.name.startswith("."))  # others are under way
    return {path.name: path.stat().st_size for path in whole}


def test_a_store_shows_the_same_images_and_is_asked_once(
    stored: S3Server, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    dataset = Dataset.open(URL, ShardCache(tmp_path / "here"))
    assert dataset.content_hash == tiny_dataset.content_hash
    assert dataset.address == URL
    remote, local = open_stream(dataset), open_stream(tiny_dataset, order="windowed")
    assert (remote.config.order, open_stream(tiny_dataset).config.order) == ("windowed", "global")
    balanced = open_stream(dataset, sampling="class_balanced")
    assert balanced.config.order == "global"
    expected = list(read_epoch(local))
    assert list(read_epoch(remote)) == expected
    assert list(read_epoch(open_stream(dataset))) == expected
    assert list(read_epoch(balanced)) == list(read_epoch(open_stream(tiny_dataset, sampling="class_balanced")))
    scored = open_stream(dataset, training=False)
    assert list(read_epoch(scored)) == list(read_epoch(open_stream(tiny_dataset, training=False)))
    fetched = stored.count("GET", ".tar")
    assert set(fetched.values()) == {1}
    assert {Path(name).name for name in fetched} == set(cached(dataset.shard_files.cache))
    with pytest.raises(UserError, match="class_balanced draws from all shards"):
        open_stream(dataset, sampling="class_balanced", order="windowed")


def test_shards_are_there_before_they_are_needed(stored: S3Server, tmp_path: Path) -> None:
    dataset = Dataset.open(URL, ShardCache(tmp_path / "here"))
    names = sorted(dataset.metadata["shards"])
    ahead = ReadAhead(dataset, lambda batch: [names[batch]], first=0, end=len(names), depth=2)
    deadline = time.monotonic() + 100
    while len(cached(dataset.shard_files.cache)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    assert sorted(cached(dataset.shard_files.cache)) == names[:3]  # that of batch 0 and of two more
    ahead.advance(1)
    while len(cached(dataset.shard_files.cache)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    ahead.close()
    assert sorted(cached(dataset.shard_files.cache)) == names[:4]


def test_a_gallery_fetches_its_images_alone(stored: S3Server, tiny_dataset: Dataset, tmp_path: Path) -> None:
    dataset = Dataset.open(URL, ShardCache(tmp_path / "here"))
    row = dataset.samples().iloc[5]
    assert dataset.read_encoded(row) == tiny_dataset.read_encoded(row)
    assert not cached(dataset.shard_files.cache)
    path = dataset.shard_path(row["shard"])
    stored.requests.clear()
    assert dataset.read_encoded(row) == tiny_dataset.read_encoded(row)
    assert not stored.requests
    assert path.read_bytes() == tiny_dataset.shard_path(row["shard"]).read_bytes()


def test_a_cache_smaller_than_the_data_set_is_never_exceeded(
    stored: S3Server, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    sizes = [facts["bytes"] for facts in tiny_dataset.metadata["shards"].values()]
    cache = ShardCache(tmp_path / "here", limit=max(sizes) * 3)
    assert cache.limit < sum(sizes) / 2
    stream = open_stream(Dataset.open(URL, cache))
    seen = []
    for number in read_epoch(stream):
        seen.append(number)
        assert sum(cached(cache).values()) <= cache.limit
        mapped = {
            line.split(None, 5)[5].strip()
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(cache.folder) in line
        }
        assert len(mapped) <= 4  # removed shards are let go of, or they would still take room
    assert seen == list(read_epoch(open_stream(tiny_dataset, order="windowed")))
    tight = ShardCache(tmp_path / "tight", limit=min(sizes) - 1)
    with pytest.raises(UserError, match=r"does not fit into a cache of .* raise cache_size="):
        Dataset.open(URL, tight).shard_path(next(iter(tiny_dataset.metadata["shards"])))


def test_a_corrupted_object_is_refused_and_named(stored: S3Server, tiny_dataset: Dataset, tmp_path: Path) -> None:
    dataset = Dataset.open(URL, ShardCache(tmp_path / "here"))
    name = str(dataset.samples(splits=["train"])["shard"].iloc[0])
    content = bytearray(tiny_dataset.shard_path(name).read_bytes())
    content[len(content) // 2] ^= 1
    stored.put(f"tiny/shards/{name}", bytes(content))
    with pytest.raises(UserError, match=rf"{URL}/shards/{name}: not the bytes that were written") as refused:
        list(read_epoch(open_stream(dataset)))
    assert "\n" not in str(refused.value)
    assert name not in cached(dataset.shard_files.cache)
    stored.put(f"tiny/shards/{name}", bytes(content[:-100]))
    with pytest.raises(UserError, match=rf"{name}: the shard has \d+ bytes, not {len(content)}"):
        Dataset.open(URL)
    stored.delete(f"tiny/shards/{name}")
    with pytest.raises(UserError, match=rf"{URL}/shards/{name}: the shard is missing"):
        Dataset.open(URL)


def test_a_cached_shard_that_was_damaged_is_named(stored: S3Server, tmp_path: Path) -> None:
    dataset = Dataset.open(URL, ShardCache(tmp_path / "here"))
    row = dataset.samples(splits=["train"]).iloc[0]
    path = dataset.shard_path(row["shard"])
    content = bytearray(path.read_bytes())
    content[row["offset"]] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: the bytes of sample .* delete this file, and it is fetched again"):
        list(read_epoch(open_stream(dataset)))
    path.unlink()
    list(read_epoch(open_stream(dataset)))


def test_the_server_dies_in_an_epoch(
    stored: S3Server, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off in the middle of a slow answer, away for three seconds: the epoch ends as if nothing had been."""
    shard = next(iter(tiny_dataset.metadata["shards"].values()))
    stored.bytes_per_second = shard["bytes"] * 3
    dataset = Dataset.open(URL, ShardCache(tmp_path / "here", limit=10 * shard["bytes"]))
    seen = []
    for number, batch in enumerate(read_epoch(open_stream(dataset))):
        seen.append(batch)
        if number == 1:
            assert len(cached(dataset.shard_files.cache)) < len(tiny_dataset.metadata["shards"])
            stored.kill()
            threading.Timer(3, stored.start).start()
    assert seen == list(read_epoch(open_stream(tiny_dataset, order="windowed")))
    said = capsys.readouterr().err
    assert f"{URL}: no answer for " in said
    assert f"{URL}: answers again" in said


def test_what_a_killed_process_was_fetching_is_fetched_anew(
    stored: S3Server, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    dataset = Dataset.open(URL, ShardCache(tmp_path / "here"))
    name, other = sorted(dataset.metadata["shards"])[:2]
    folder = dataset.shard_files.cache.folder
    folder.mkdir(parents=True)
    for each in (name, other):
        (folder / f".coming-{dataset.metadata['shards'][each]['bytes']}-{each}").write_bytes(b"begun")
    assert dataset.shard_path(name).read_bytes() == tiny_dataset.shard_path(name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", name]


def test_what_others_keep_in_the_folder_stays(stored: S3Server, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """A user may name a folder that holds other things, a data set on this disk even."""
    shutil.copytree(tiny_dataset.root, tmp_path / "data")
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    largest = max(facts["bytes"] for facts in tiny_dataset.metadata["shards"].values())
    dataset = Dataset.open(URL, ShardCache(tmp_path / "data", limit=largest))
    for name in dataset.metadata["shards"]:
        dataset.shard_path(name)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_threads_that_want_one_shard_fetch_it_once(stored: S3Server, tmp_path: Path) -> None:
    stored.bytes_per_second = 100_000
    dataset = Dataset.open(URL, ShardCache(tmp_path / "here"))
    name = next(iter(dataset.metadata["shards"]))
    threads = [threading.Thread(target=dataset.shard_path, args=(name,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored.count("GET", name) == {f"tiny/shards/{name}": 1}


def test_a_folder_that_cannot_be_written_is_the_users(stored: S3Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    dataset = Dataset.open(URL, ShardCache(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep shards here .* cache=DIR"):
        dataset.shard_path(next(iter(dataset.metadata["shards"])))
    assert os.listdir(tmp_path) == ["file"]
