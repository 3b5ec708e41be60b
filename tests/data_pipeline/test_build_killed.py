"""If these fail, a build that is killed or meets a full disk leaves a data set that is neither old nor new."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.catalog import Dataset
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from tests.data_pipeline.raw_images import encoded, files_below, folder_source, write_classes, write_image

# Builds in children of one small process, which is started once: a child is killed after `delay` seconds,
# or before its `step`-th call that changes or secures something on disk.
_KILLER = """
import io, json, os, pathlib, signal, sys, time
import webdataset
import data_pipeline.ingest.build as build
from data_pipeline.ingest.images import inspect_image
from data_pipeline.sources import SourceDeclaration
from tests.data_pipeline.dying import die_before

inspect_image(bytes.fromhex(sys.argv[1]))  # what the first image imports, once for all children

for line in sys.stdin:
    order = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        if order["step"] is not None:
            die_before(order["step"])
        sources = [SourceDeclaration.from_json(source) for source in order["sources"]]
        build.build_dataset(pathlib.Path(order["root"]), sources, progress=False)
        os._exit(0)
    if order["delay"] is not None:
        time.sleep(order["delay"])
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([os.WIFSIGNALED(status), time.monotonic() - started]), flush=True)
"""


class Killer:
    """Runs builds that are killed; tells whether the kill came in time, and how long the build ran."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _KILLER, encoded(0).hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def build(
        self, root: Path, *sources: SourceDeclaration, delay: float | None = None, step: int | None = None
    ) -> tuple[bool, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        declared = [source.to_json() for source in sources]
        order = {"root": str(root), "sources": declared, "delay": delay, "step": step}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        killed, seconds = json.loads(self.process.stdout.readline())
        return killed, seconds


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    started = Killer()
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(10)


class Change:
    """A data set, and the same one after a change that adds, rewrites and removes shards."""

    def __init__(self, folder: Path) -> None:
        self.sources = [
            folder_source(write_classes(folder / name, {"basophil": count, "monocyte": count}, seed), name)
            for name, count, seed in (("one", 9, 0), ("two", 5, 100))
        ]
        self.root = folder / "data"
        self.old_root, self.new_root = folder / "old", folder / "new"
        build_dataset(self.old_root, self.sources[:1], settings=ShardSettings(max_samples=5), progress=False)
        write_image(folder / "one" / "basophil" / "late.jpg", 900)
        (folder / "one" / "monocyte" / "0000.jpg").unlink()
        shutil.copytree(self.old_root, self.new_root)
        build_dataset(self.new_root, self.sources, progress=False)
        self.old, self.new = files_below(self.old_root), files_below(self.new_root)

    def start_over(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.old_root, self.root)

    def check(self) -> str:
        """'old' or 'new': what a reader sees now, every byte of it read; anything between fails."""
        verify_dataset(self.root, progress=False)
        dataset = Dataset.open(self.root)
        seen = "old" if dataset.content_hash == Dataset.open(self.old_root).content_hash else "new"
        whole = self.old if seen == "old" else self.new
        found = files_below(self.root)
        assert found[CATALOG_FILE] == whole[CATALOG_FILE]
        shards = {name for name in whole if name.startswith("shards/")}
        assert all(found[name] == whole[name] for name in shards)
        return seen

    def heal(self) -> None:
        build_dataset(self.root, self.sources, progress=False)
        assert files_below(self.root) == self.new, "the next build left something behind"


@pytest.fixture(scope="module")
def change(tmp_path_factory: pytest.TempPathFactory) -> Change:
    return Change(tmp_path_factory.mktemp("killed"))


def test_killed_before_any_step_on_disk_the_old_or_the_new_data_set_is_whole(change: Change, killer: Killer) -> None:
    def kill_at(step: int) -> tuple[bool, str]:
        change.start_over()
        killed, _ = killer.build(change.root, *change.sources, step=step)
        return killed, change.check()

    # Coarsely through the writing of shards, then one by one through the commit and the collecting.
    last = next(step for step in range(1, 2000, 17) if not kill_at(step)[0])
    assert files_below(change.root) == change.new
    seen = []
    for step in range(max(1, last - 26), last):
        killed, found = kill_at(step)
        if killed:
            seen.append(found)
        if step % 8 == 0:
            change.heal()
    assert seen == sorted(seen, reverse=True), "once committed, a data set stays so"
    assert set(seen) == {"old", "new"}, "kills before and after the commit"


def test_killed_at_random_moments_again_and_again(change: Change, killer: Killer) -> None:
    change.start_over()
    _, seconds = killer.build(change.root, *change.sources)
    moments = random.Random(0)
    for _ in range(6):
        change.start_over()
        for _ in range(2):
            killer.build(change.root, *change.sources, delay=moments.uniform(0, seconds * 1.1))
            change.check()
        change.heal()


def test_a_first_build_killed_is_no_data_set_or_a_whole_one(change: Change, killer: Killer, tmp_path: Path) -> None:
    change.root, before = tmp_path / "first", change.root
    try:
        for step in range(2, 40, 9):
            shutil.rmtree(change.root, ignore_errors=True)
            killed, _ = killer.build(change.root, *change.sources, step=step)
            assert killed
            if (change.root / CATALOG_FILE).exists():
                verify_dataset(change.root, progress=False)
            build_dataset(change.root, change.sources, settings=ShardSettings(max_samples=5), progress=False)
            assert files_below(change.root) == change.new
    finally:
        change.root = before


def _children(pid: int) -> set[int]:
    try:
        direct = {int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()
    return direct.union(*map(_children, direct))


def test_workers_end_with_a_killed_build(tmp_path: Path) -> None:
    """Else they wait for work for ever, and hold memory, once for every kill."""
    raw = write_classes(tmp_path / "raw", {"basophil": 200}, 0)
    code = (
        "import sys, pathlib, data_pipeline.ingest.build as b, data_pipeline.sources as s\n"
        "b.build_dataset(pathlib.Path(sys.argv[2]), [s.SourceDeclaration('folder', 'f', pathlib.Path(sys.argv[1]),"
        " 'd')], settings=b.ShardSettings(max_samples=4), workers=2, progress=False)\n"
    )
    build = subprocess.Popen([sys.executable, "-c", code, str(raw), str(tmp_path / "data")])
    family: set[int] = set()
    deadline = time.monotonic() + 60
    # The server, the resource tracker and two workers.
    while len(family) < 4 and time.monotonic() < deadline and build.poll() is None:
        family |= _children(build.pid)
        time.sleep(0.01)
    build.kill()
    build.wait()
    assert len(family) >= 4, "the workers never started"
    while any(_alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in family if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Builds a data set, then meets a disk that takes no more, and says what it found afterwards.
_FULL = """
import errno, json, os, pathlib, resource, subprocess, sys
import data_pipeline.ingest.build as b, data_pipeline.sources as s
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.shards.verify import verify_dataset

how, raw, disk = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
if how != "limit":
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=True)
root = disk / "data"
source = lambda name: s.SourceDeclaration("folder", name, raw / name, "d")
b.build_dataset(root, [source("small")], progress=False)
before = {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
if how == "readonly":
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
said = []
for root_asked, name in ((root, "large"), (disk / "fresh", "large")):
    try:
        b.build_dataset(root_asked, [source(name)], progress=False, workers=int(sys.argv[4]))
        said.append(None)
    except UserError as error:
        said.append(str(error))
after = {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
verify_dataset(root, progress=False)
print(json.dumps({"said": said, "same": before == after, "fresh": (disk / "fresh").exists()}))
"""


def _on_a_small_disk(how: str, folder: Path, workers: int) -> dict[str, Any]:
    write_classes(folder / "raw" / "small", {"basophil": 4}, 0)
    for number in range(60):
        path = folder / "raw" / "large" / "basophil" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(1000 + number, side=300))
    disk = folder / "disk"
    disk.mkdir()
    command = [sys.executable, "-c", _FULL, how, str(folder / "raw"), str(disk), str(workers)]
    if how != "limit":
        own_mounts = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
        if shutil.which("unshare") is None or subprocess.run([*own_mounts, "true"], capture_output=True).returncode:
            pytest.skip("this machine lets no test mount a small disk")
        command = [*own_mounts, *command]
    ended = subprocess.run(command, capture_output=True, text=True)
    if "mount" in ended.stderr and "CalledProcessError" in ended.stderr:
        pytest.skip("this machine lets no test mount a small disk")
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.mark.parametrize(
    ("how", "says", "workers"),
    [
        ("full", "No space left on device", 2),
        ("limit", "File too large", 1),
        ("readonly", "Read-only file system", 1),
    ],
)
def test_a_disk_that_takes_no_more_leaves_the_old_data_set_whole(
    how: str, says: str, workers: int, tmp_path: Path
) -> None:
    result = _on_a_small_disk(how, tmp_path, workers)
    for said in result["said"]:
        assert said is not None
        assert says in said
        assert "\n" not in said
        assert str(tmp_path / "disk") in said
        assert "make room or name a folder that can be written" in said
    assert result["same"], "the old data set changed, or temporary files stayed"
    assert not result["fresh"], "a folder was left where there is no data set"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    raw = write_classes(tmp_path / "raw", {"basophil": 2}, 0)
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(Exception, match="Permission denied"):
        build_dataset(tmp_path / "locked" / "data", [folder_source(raw, "f")], progress=False)


def test_ctrl_c_leaves_the_old_data_set_whole(tmp_path: Path) -> None:
    raw = write_classes(tmp_path / "raw", {"basophil": 150}, 0)
    write_classes(tmp_path / "small", {"basophil": 3}, 900)
    root = tmp_path / "data"
    build_dataset(root, [folder_source(tmp_path / "small", "small")], progress=False)
    before = files_below(root)
    code = (
        "import signal, sys, pathlib, data_pipeline.ingest.build as b, data_pipeline.sources as s\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where pytest itself was started so
        "b.build_dataset(pathlib.Path(sys.argv[2]), [s.SourceDeclaration('folder', 'f', pathlib.Path(sys.argv[1]),"
        " 'd')], settings=b.ShardSettings(max_samples=2), progress=False)\n"
    )
    build = subprocess.Popen([sys.executable, "-c", code, str(raw), str(root)], stderr=subprocess.DEVNULL)
    shards_before = len(os.listdir(root / "shards"))
    while build.poll() is None and len(os.listdir(root / "shards")) < shards_before + 6:
        time.sleep(0.002)
    build.send_signal(signal.SIGINT)
    assert build.wait(60) != 0
    assert files_below(root) == before
