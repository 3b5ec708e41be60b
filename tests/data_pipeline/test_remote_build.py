"""If these fail, a data set in a store is another than on a disk, or a build that is killed leaves half of one."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.banks.derive import derive_dataset
from data_pipeline.catalog import Dataset, from_table
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards import build_store
from data_pipeline.shards.build_store import StoreSite
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.store import Store
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from tests.data_pipeline.raw_images import files_below, folder_source, write_classes, write_image
from tests.s3_server import BUCKET, S3Server

URL = f"s3://{BUCKET}/data"
SETTINGS = ShardSettings(max_samples=5)

# Builds in children of one small process: a child is killed before its `step`-th change to the store.
_KILLER = """
import json, os, signal, sys
import data_pipeline.ingest.build as build
import fsspec, s3fs, botocore.exceptions, scipy.fftpack, webdataset
from data_pipeline.sources import SourceDeclaration
from data_pipeline.shards.store import Store

url, *sources = json.loads(sys.argv[1])
for step in json.loads(sys.argv[2]):
    sys.stdin.readline()
    child = os.fork()
    if child == 0:
        calls = 0
        def dying(real):
            def call(*arguments, **options):
                global calls
                calls += 1
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)
            return call
        for name in ("put", "put_file", "remove"):
            setattr(Store, name, dying(getattr(Store, name)))
        build.build_dataset(url, [SourceDeclaration.from_json(source) for source in sources], progress=False)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(json.dumps(os.WIFSIGNALED(status)), flush=True)
"""


@pytest.fixture
def sources(tmp_path: Path) -> list[SourceDeclaration]:
    return [
        folder_source(write_classes(tmp_path / name, {"basophil": count, "monocyte": count}, seed), name)
        for name, count, seed in (("one", 9, 0), ("two", 5, 100))
    ]


def in_store(s3: S3Server) -> dict[str, bytes]:
    """Every object of the data set but that which tells of the build, not of the data."""
    return {name: content for name, content in s3.objects("data").items() if name != "build_report.json"}


def let_time_pass(s3: S3Server) -> None:
    """What a killed build has left of its lock is as old as it must be for another to take its place."""
    lock = json.loads(s3.objects("data")[".lock"])
    lock["alive"] -= build_store._STALE
    s3.put("data/.lock", json.dumps(lock).encode())


def test_a_data_set_in_a_store_is_that_on_a_disk(
    s3: S3Server, sources: list[SourceDeclaration], tmp_path: Path
) -> None:
    """From nothing, grown, changed and shrunk: the same objects; what changes is written, the catalogue after it."""
    disk = tmp_path / "data"

    def build_both(*declared: SourceDeclaration, **options: object) -> list[str]:
        s3.requests.clear()
        told = build_dataset(URL, declared, progress=False, workers=1 + bool(options), **options)  # type: ignore[arg-type]
        written = [name.removeprefix("data/") for method, name in s3.requests if method == "PUT"]
        build_dataset(disk, declared, progress=False, **options)  # type: ignore[arg-type]
        assert in_store(s3) == files_below(disk)
        assert told["content_hash"] == Dataset.open(disk).content_hash == Dataset.open(URL).content_hash
        assert json.loads(s3.objects("data")["build_report.json"]) == told
        assert written[0] == ".lock"
        return [name for name in written if name != ".lock"]

    first = build_both(sources[0], settings=SETTINGS)
    shards = [name for name in first if name.startswith("shards/")]
    rows = [name for name in first if name.startswith("catalog/one-")]
    assert first == [*shards, *rows, "catalog.parquet", "dataset.json", "build_report.json"]
    assert len(rows) == 1
    assert all(name.endswith(".idx") == (number % 2 == 0) for number, name in enumerate(sorted(shards)))
    grown = build_both(sources[1])
    assert all(name.startswith(("shards/two-", "catalog/two-")) for name in grown if "/" in name)
    assert build_both() == ["dataset.json", "build_report.json"]
    write_image(tmp_path / "one" / "basophil" / "late.jpg", 900)
    changed = [name for name in build_both() if name.endswith(".tar")]
    assert len(changed) == 1
    build_both(remove=["two"])
    verify_dataset(URL, progress=False)


def test_a_shard_that_is_gone_is_written_anew(s3: S3Server, sources: list[SourceDeclaration]) -> None:
    build_dataset(URL, sources, settings=SETTINGS, progress=False)
    before = in_store(s3)
    first, second = sorted(name for name in before if name.endswith(".tar"))[:2]
    s3.delete(f"data/{first}")
    s3.delete(f"data/{second.replace('.tar', '.idx')}")
    s3.put("data/shards/notes.txt", b"the user's own")
    with pytest.raises(UserError, match=f"{URL}/{first}: the shard is missing"):
        Dataset.open(URL)
    assert build_dataset(URL, [], progress=False)["shards_written"] == 2
    assert in_store(s3) == before | {"shards/notes.txt": b"the user's own"}


def test_verification_reads_the_store_not_the_cache(s3: S3Server, sources: list[SourceDeclaration]) -> None:
    build_dataset(URL, sources, settings=SETTINGS, progress=False)
    dataset = Dataset.open(URL)
    for name in dataset.metadata["shards"]:
        dataset.shard_path(name)
    whole = in_store(s3)
    name = min(name for name in whole if name.endswith(".tar"))
    s3.put(f"data/{name}", whole[name][:-1] + b"x")
    with pytest.raises(UserError, match=f"{URL}/{name}: not the bytes that were written"):
        verify_dataset(URL, progress=False)
    s3.put(f"data/{name}", whole[name])
    index = name.replace(".tar", ".idx")
    s3.put(f"data/{index}", b"v1.2 0\n")
    with pytest.raises(UserError, match=f"{URL}/{index}: missing or not the index"):
        verify_dataset(URL, progress=False)


@pytest.mark.parametrize("every_step", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_build_leaves_the_old_data_set(
    s3: S3Server, sources: list[SourceDeclaration], tmp_path: Path, every_step: bool
) -> None:
    """Or the new one, whole; the next build finishes it, and nothing is left over."""
    build_dataset(URL, sources[:1], settings=SETTINGS, progress=False)
    write_image(tmp_path / "one" / "basophil" / "late.jpg", 900)
    old_objects = s3.objects("data")
    old = in_store(s3)
    build_dataset(URL, sources, progress=False)
    new = in_store(s3)
    # Before the n-th change to the store: shards, indices and rows; catalogue, mirror and report; then the removal.
    commit = 1 + sum(name.startswith(("shards/", "catalog/")) for name in new.keys() - old.keys())
    steps = list(range(1, commit + 4)) if every_step else [commit, commit + 3]
    orders = [json.dumps([URL, *(source.to_json() for source in sources)]), json.dumps(steps)]
    with subprocess.Popen(
        [sys.executable, "-c", _KILLER, *orders], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killer:
        assert killer.stdin is not None
        assert killer.stdout is not None
        for step in steps:
            s3.clear()
            for name, content in old_objects.items():
                s3.put(f"data/{name}", content)
            killer.stdin.write("go\n")
            killer.stdin.flush()
            assert json.loads(killer.stdout.readline()), f"not killed at step {step}"
            verify_dataset(URL, progress=False)
            there = in_store(s3)
            whole = old if step <= commit else new
            assert there["catalog.parquet"] == whole["catalog.parquet"]
            assert {name: there[name] for name in whole if name != "dataset.json"} == {
                name: content for name, content in whole.items() if name != "dataset.json"
            }
            with pytest.raises(UserError, match=r"another build is at work here .* gives way at"):
                build_dataset(URL, sources, progress=False)
            let_time_pass(s3)
            build_dataset(URL, sources, progress=False)
            assert in_store(s3) == new
        killer.stdin.close()


def test_one_build_at_a_time(s3: S3Server, sources: list[SourceDeclaration], monkeypatch: pytest.MonkeyPatch) -> None:
    build_dataset(URL, sources[:1], settings=SETTINGS, progress=False)
    before = in_store(s3)
    monkeypatch.setattr(build_store, "_SIGN_OF_LIFE", 0.2)
    with StoreSite(Store(URL)).held():
        first = json.loads(s3.objects("data")[".lock"])
        time.sleep(1)
        assert json.loads(s3.objects("data")[".lock"])["alive"] > first["alive"]
        with pytest.raises(UserError, match=rf"{URL}: another build is at work here \(process {os.getpid()} on "):
            build_dataset(URL, sources, progress=False)
    assert in_store(s3) == before


def test_a_build_whose_place_was_taken_commits_nothing(s3: S3Server, sources: list[SourceDeclaration]) -> None:
    site = StoreSite(Store(URL))
    with site.held():
        let_time_pass(s3)
        build_dataset(URL, sources, settings=SETTINGS, progress=False)
        whole = in_store(s3)
        with pytest.raises(UserError, match="has taken the place of this one"):
            site.commit({"shards": {}, "partitions": {}}, {})
    assert in_store(s3) == whole


def test_a_build_that_fails_leaves_nothing(s3: S3Server, sources: list[SourceDeclaration], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    write_image(tmp_path / "none" / "basophil" / "bad.jpg", 0).write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 1 images can be used"):
        build_dataset(URL, [folder_source(tmp_path / "none", "none")], progress=False)
    assert s3.objects("data") == {}
    s3.put("data/thesis.pdf", b"")
    with pytest.raises(UserError, match=rf"{URL}: no data set, yet it holds thesis.pdf"):
        build_dataset(URL, sources, progress=False)
    assert s3.objects("data") == {"thesis.pdf": b""}


def test_what_is_derived_refers_to_the_store(s3: S3Server, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """By reference, never copied; a derived data set that was copied to the store is read there too."""
    s3.fill(tiny_dataset.root, "data")
    parent = Dataset.open(URL)
    derive_dataset(
        tmp_path / "derived",
        parent,
        kept=from_table(parent.table),
        made=[],
        render=lambda rows: iter(()),
        made_by={"tool": "test"},
        settings=ShardSettings(**parent.metadata["settings"]),
        attachments={"notes.txt": write_image(tmp_path / "notes.png", 1)},
        progress=False,
    )
    derived = Dataset.open(tmp_path / "derived", ShardCache(tmp_path / "here"))
    assert derived.in_store
    row = derived.samples().iloc[0]
    assert derived.read_encoded(row) == tiny_dataset.read_encoded(row)
    assert {facts["folder"] for facts in derived.metadata["shards"].values()} == {URL}
    assert not list((tmp_path / "derived" / "shards").iterdir())
    s3.fill(tmp_path / "derived", "derived")
    copied = Dataset.open(f"s3://{BUCKET}/derived")
    assert copied.content_hash == derived.content_hash == tiny_dataset.content_hash
    assert copied.attachment_path("notes.txt").read_bytes() == (tmp_path / "notes.png").read_bytes()
    assert copied.shard_path(row["shard"]).read_bytes() == tiny_dataset.shard_path(row["shard"]).read_bytes()
    with pytest.raises(UserError, match=re.escape(f"s3://{BUCKET}/derived: was derived from another data set")):
        build_dataset(f"s3://{BUCKET}/derived", [], progress=False)
