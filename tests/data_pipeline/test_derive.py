"""If these fail, normalised images are lost, made twice, mixed with others, or scored under a wrong name."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import webdataset

from data_pipeline.banks.derive import derive_dataset
from data_pipeline.catalog import Dataset, Sample, from_table
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards.build_files import build_lock
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import encode_pixels, index_name
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream
from tests.conftest import TINY_TYPES
from tests.data_pipeline.negatives import MADE_TYPE, SETTINGS, Renderer, derive, divide, own_shards
from tests.data_pipeline.raw_images import files_below, folder_source, write_classes


def test_made_images_are_stored_and_kept_ones_stay_where_they_are(
    parent: Dataset, normaliser: Path, tmp_path: Path
) -> None:
    before = files_below(parent.root)
    report = derive(tmp_path / "derived", parent, attachments={"normalizer.bin": normaliser})
    derived = Dataset.open(tmp_path / "derived")
    assert files_below(parent.root) == before
    verify_dataset(derived.root, progress=False)
    rows = derived.samples()
    made = rows[rows["origin"] == "normalized"]
    of_parent = parent.samples().set_index("id")
    image = Renderer(parent).image
    for row in made.itertuples(index=False):
        stored = derived.read_encoded(row)
        assert hashlib.sha256(stored).hexdigest() == row.id == row.key
        assert stored == encode_pixels(image(str(row.parent)), SETTINGS), "not stored as any other image"
        real = of_parent.loc[row.parent]
        assert (row.split, row.fold, row.group, row.cell_type) == (real.split, real.fold, real.group, real.cell_type)
        assert (row.width, row.height, row.microns_per_pixel) == (32, 32, 0.07)
    assert len(made) == (of_parent["cell_type"] == MADE_TYPE).sum()
    kept = rows[rows["origin"] == "real"]
    assert len(kept) == len(of_parent) - len(made) - 1
    assert all(derived.read_encoded(row) == parent.read_encoded(row) for row in kept.itertuples(index=False))
    assert [row.reason for row in from_table(derived.table) if not row.kept] == ["expert's list"]
    shards = {path.name for path in (derived.root / "shards").iterdir()}
    assert shards == {file for name in own_shards(derived) for file in (name, index_name(name))}
    assert derived.metadata["parents"] == [{"path": "../parent", "content_hash": parent.content_hash}]
    assert report["shards_written"] == len(own_shards(derived)) > 2
    assert report["samples"] == len(rows)
    assert report["excluded_by_reason"] == {"expert's list": 1}
    assert json.loads((derived.root / "build_report.json").read_text()) == report
    assert json.loads((derived.root / "dataset.json").read_text()) == derived.metadata
    assert derived.attachment_path("normalizer.bin").read_bytes() == normaliser.read_bytes()
    with pytest.raises(UserError, match=r"no other\.bin goes with this data set; it has: normalizer\.bin"):
        derived.attachment_path("other.bin")


def test_a_stream_reads_kept_and_made_images_alike(parent: Dataset, tmp_path: Path) -> None:
    derive(tmp_path / "derived", parent)

    def seen(root: Path, domains: list[str] | None) -> dict[str, torch.Tensor]:
        config = StreamConfig(image_size=32, domains=domains, threads=1)
        stream = Stream(
            Dataset.open(root), config, splits=["train"], cell_types=TINY_TYPES, global_batch=16, training=False
        )
        images = ((row, image) for part in stream.read() for row, image in zip(part.rows, part.images, strict=True))
        return {stream.samples["path"][row]: image.clone() for row, image in images}

    real, kept = seen(parent.root, None), seen(tmp_path / "derived", ["giemsa", "violet"])
    made = seen(tmp_path / "derived", ["negative"])
    assert len(kept) > 10
    assert all(torch.equal(image, real[path]) for path, image in kept.items())
    assert len(made) > 5
    for path, image in made.items():
        assert (image + real[path]).abs().mean() < 0.05, "not the negative of its parent, JPEG's error apart"


def test_made_shards_are_plain_webdataset(parent: Dataset, tmp_path: Path) -> None:
    derive(tmp_path / "derived", parent)
    derived = Dataset.open(tmp_path / "derived")
    rows = derived.samples().set_index("id")
    for name in own_shards(derived):
        with tarfile.open(derived.shard_path(name)) as tar:
            keys = [member.name[:64] for member in tar if member.name.endswith(".jpg")]
        assert keys == sorted(keys)
        members = rows[rows["shard"] == name]
        tool = Path(sys.executable).with_name("wds2idx")
        subprocess.run([sys.executable, tool, derived.shard_path(name), tmp_path / "idx"], check=True)
        assert derived.shard_path(index_name(name)).read_bytes() == (tmp_path / "idx").read_bytes()
        url = str(derived.shard_path(name))
        for sample in webdataset.WebDataset([url], shardshuffle=False, empty_check=False).decode("pil"):
            facts = members.loc[sample["__key__"]]
            assert sample["cls"] == 4
            told = sample["json"]
            assert (told["id"], told["origin"], told["parent"]) == (facts.name, "normalized", facts.parent)
            assert (told["domain"], told["group"]) == ("negative", facts.group)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_derive_together_what_one_derives(
    parent: Dataset, normaliser: Path, tmp_path: Path, world_size: int
) -> None:
    derive(tmp_path / "alone" / "data", parent, attachments={"n": normaliser})
    together = threading.Barrier(world_size, timeout=60)
    renderers = [Renderer(parent) for _ in range(world_size)]

    def part(rank: int) -> dict[str, Any]:
        return derive(
            tmp_path / "group" / "data",
            parent,
            attachments={"n": normaliser},
            render=renderers[rank],
            rank=rank,
            world_size=world_size,
            barrier=lambda: together.wait() and None,
        )

    with ThreadPoolExecutor(world_size) as pool:
        reports = list(pool.map(part, range(world_size)))
        assert files_below(tmp_path / "group" / "data") == files_below(tmp_path / "alone" / "data")
        assert all(report == reports[0] for report in reports)
        calls = [call for renderer in renderers for call in renderer.calls]
        assert len(calls) == len(set(calls)) == reports[0]["shards_written"]
        assert all(renderer.calls for renderer in renderers)
        again = list(pool.map(part, range(world_size)))
    assert [report["shards_written"] for report in again] == [0] * world_size
    assert [call for renderer in renderers for call in renderer.calls] == calls, "finished, yet made again"


def test_a_finished_derivation_is_left_as_it_is(parent: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "derived"
    first = derive(root, parent)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    renderer = Renderer(parent)
    again = derive(root, parent, render=renderer)
    assert not renderer.calls
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times
    assert (again["shards_written"], again["shards_removed"]) == (0, 0)
    assert again["shards_kept"] == first["shards_written"] + first["shards_kept"]
    assert again["content_hash"] == first["content_hash"]
    journal = root / "shards" / f".made-{'0' * 64}.json"
    journal.write_text("{}")
    derive(root, parent, render=renderer)
    assert not journal.exists(), "what a commit that was cut off left lies about for ever"
    assert not renderer.calls


def test_whatever_decides_the_images_makes_them_anew(parent: Dataset, normaliser: Path, tmp_path: Path) -> None:
    root = tmp_path / "derived"
    hashes = [derive(root, parent)["content_hash"]]
    kept, made = divide(parent)
    changes: list[dict[str, Any]] = [
        {"made_by": {"what": "negatives", "generator": "g1", "policy": "to_b"}},
        {"settings": dataclasses.replace(SETTINGS, quality=70)},
        {"settings": dataclasses.replace(SETTINGS, max_samples=5)},
        {"made": [dataclasses.replace(row, domain="other") for row in made]},
    ]
    for change in changes:
        renderer = Renderer(parent)
        report = derive(root, parent, **{"render": renderer, **change})
        assert len(renderer.calls) == report["shards_written"] == len(own_shards(Dataset.open(root)))
        hashes.append(report["content_hash"])
        verify_dataset(root, progress=False)
        own = {file for name in own_shards(Dataset.open(root)) for file in (name, index_name(name))}
        assert {path.name for path in (root / "shards").iterdir()} == own, "another recipe's shards stayed"
    assert len(set(hashes)) == len(hashes) - 1, "another policy with the same images is the same data"
    before = files_below(root)
    derive(root, parent, kept=kept[1:], attachments={"n": normaliser}, **changes[3])
    assert files_below(root).keys() - before.keys(), "rows or attachments changed, and the old data set stayed"


def test_the_content_hash_is_of_the_images_not_of_the_place(parent: Dataset, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "far" / "away" / "there"
    first, other = derive(here, parent)["content_hash"], derive(there, parent)["content_hash"]
    assert first == other != parent.content_hash
    brighter = Renderer(parent)

    def render(samples: Sequence[Sample]) -> Iterator[npt.NDArray[np.uint8]]:
        return (image // 2 for image in brighter(samples))

    assert derive(tmp_path / "other", parent, render=render)["content_hash"] != first


def test_data_sets_move_together(parent: Dataset, tmp_path: Path) -> None:
    derive(tmp_path / "derived", parent)
    (tmp_path / "moved").mkdir()
    for name in ("parent", "derived"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    (tmp_path / "link").symlink_to(tmp_path / "moved" / "derived")
    for root in (tmp_path / "moved" / "derived", tmp_path / "link"):
        verify_dataset(root, progress=False)


def test_a_parent_that_moved_or_changed_is_one_line(parent: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "derived"
    derive(root, parent)
    verified = files_below(root)
    parent.root.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=rf"{root}: was derived from .*{parent.root}, which is not there") as caught:
        Dataset.open(root)
    assert "\n" not in str(caught.value)
    renderer = Renderer(Dataset.open(tmp_path / "moved"))
    report = derive(root, Dataset.open(tmp_path / "moved"), render=renderer)
    assert not renderer.calls, "only the reference was to be mended"
    assert report["shards_written"] == 0
    verify_dataset(root, progress=False)
    shards = {name for name in verified if name.startswith("shards/")}
    assert {name: files_below(root)[name] for name in shards} == {name: verified[name] for name in shards}
    raw = write_classes(tmp_path / "raw", {"basophil": 3}, 0)
    build_dataset(tmp_path / "moved", [folder_source(raw, "f")], remove=["phantom"], progress=False)
    with pytest.raises(UserError, match=r"moved, which has changed since: the shard .* is missing") as caught:
        Dataset.open(root)
    assert "\n" not in str(caught.value)


def test_the_child_of_a_child_refers_to_who_holds_the_images(parent: Dataset, tmp_path: Path) -> None:
    derive(tmp_path / "child", parent)
    child = Dataset.open(tmp_path / "child")
    rows = from_table(child.table)
    derive_dataset(
        tmp_path / "grandchild",
        child,
        kept=rows,
        made=[],
        render=Renderer(parent),
        made_by={"what": "nothing"},
        settings=SETTINGS,
        progress=False,
    )
    grandchild = Dataset.open(tmp_path / "grandchild")
    verify_dataset(grandchild.root, progress=False)
    folders = {facts["folder"] for facts in grandchild.metadata["shards"].values()}
    assert folders == {"../parent", "../child"}
    assert grandchild.content_hash == child.content_hash
    assert grandchild.metadata["parents"] == [{"path": "../child", "content_hash": child.content_hash}]
    (tmp_path / "child" / CATALOG_FILE).unlink()
    Dataset.open(grandchild.root)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found_in_made_shards_parents_and_attachments(
    parent: Dataset, normaliser: Path, tmp_path: Path
) -> None:
    root = tmp_path / "derived"
    derive(root, parent, attachments={"normalizer.bin": normaliser})
    derived = Dataset.open(root)
    rows = derived.samples()
    for origin in ("normalized", "real"):
        row = rows[rows["origin"] == origin].iloc[0]
        shard = derived.shard_path(row["shard"])
        flip(shard, int(row["offset"]) + 5)
        with pytest.raises(UserError, match=f"{shard}: bytes changed, first in sample {row['id']}"):
            verify_dataset(root, progress=False)
        flip(shard, int(row["offset"]) + 5)
    attached = derived.attachment_path("normalizer.bin")
    flip(attached, 7)
    for look in (lambda: verify_dataset(root, progress=False), lambda: derived.attachment_path("normalizer.bin")):
        with pytest.raises(UserError, match=f"{attached}: bytes changed; delete this file and derive"):
            look()
    attached.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        verify_dataset(root, progress=False)
    derive(root, parent, attachments={"normalizer.bin": normaliser})
    verify_dataset(root, progress=False)


def test_what_cannot_be_is_refused_before_anything_changes(parent: Dataset, normaliser: Path, tmp_path: Path) -> None:
    root = tmp_path / "derived"
    derive(root, parent)
    before = files_below(root), files_below(parent.root)

    def refused(attempt: Callable[[], object]) -> str:
        with pytest.raises(UserError) as caught:
            attempt()
        assert (files_below(root), files_below(parent.root)) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    raw = folder_source(write_classes(tmp_path / "raw", {"basophil": 3}, 0), "f")
    build_dataset(tmp_path / "built", [raw], progress=False)
    assert "was derived from another data set" in refused(lambda: build_dataset(root, [raw], progress=False))
    assert "holds a data set built from raw images" in refused(lambda: derive(tmp_path / "built", parent))
    assert "is to be derived from" in refused(lambda: derive(parent.root, parent))
    assert "is to be derived from" in refused(lambda: derive(root, Dataset.open(root)))
    assert "yet it holds basophil" in refused(lambda: derive(tmp_path / "raw", parent))
    assert "cannot be read" in refused(lambda: derive(root, parent, attachments={"n": tmp_path / "none"}))
    with build_lock(root):
        assert "another build is at work" in refused(lambda: derive(root, parent, "g2"))
    derive(root, parent)


def test_equal_images_are_settled_as_duplicates(parent: Dataset, tmp_path: Path) -> None:
    """A generator that has collapsed must show in the report, not end hours of work in a traceback."""
    _, made = divide(parent)

    def render(samples: Sequence[Sample]) -> Iterator[npt.NDArray[np.uint8]]:
        return (np.full((32, 32, 3), 7, np.uint8) for _ in samples)

    report = derive(tmp_path / "derived", parent, render=render)
    assert report["excluded_by_reason"] == {"duplicate": len(made) - 1, "expert's list": 1}
    verify_dataset(tmp_path / "derived", progress=False)
    (row,) = Dataset.open(tmp_path / "derived").samples(domains=["negative"]).itertuples()
    assert row.split == "test"


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)]
)
def test_an_image_of_another_kind_is_a_bug_not_a_picture(
    parent: Dataset, tmp_path: Path, image: npt.NDArray[np.uint8]
) -> None:
    with pytest.raises(ValueError, match="not uint8"):
        derive(tmp_path / "derived", parent, render=lambda samples: iter([image for _ in samples]))
    assert not (tmp_path / "derived" / CATALOG_FILE).exists()
