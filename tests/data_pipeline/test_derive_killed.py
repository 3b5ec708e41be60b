"""If these fail, a power cut costs a night of normalising, or leaves a data set that is neither old nor new."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.catalog import Dataset
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.verify import verify_dataset
from tests.data_pipeline.negatives import derive, own_shards
from tests.data_pipeline.raw_images import files_below

# Derives in children of one small process; a child is killed before its `step`-th call that changes or
# secures something on disk.
_KILLER = """
import json, os, pathlib, sys
from data_pipeline.catalog import Dataset
from tests.data_pipeline.dying import die_before
from tests.data_pipeline.negatives import Renderer, derive

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        parent = Dataset.open(pathlib.Path(order["parent"]))
        if order["step"] is not None:
            die_before(order["step"])
        derive(
            pathlib.Path(order["root"]), parent, order["generator"],
            attachments={"normalizer.bin": pathlib.Path(order["attachment"])},
            render=Renderer(parent, pathlib.Path(order["log"])),
        )
        os._exit(0)
    print(json.dumps(os.WIFSIGNALED(os.waitpid(child, 0)[1])), flush=True)
"""


class Killer:
    """Derivations that are killed; how many shards each has rendered."""

    def __init__(self, parent: Dataset, attachment: Path, folder: Path) -> None:
        self.log = folder / "log"
        self._order = {"parent": str(parent.root), "attachment": str(attachment), "log": str(self.log)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _KILLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def derive(self, root: Path, step: int | None = None, generator: str = "g1") -> bool:
        """Whether the kill came before the end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {**self._order, "root": str(root), "step": step, "generator": generator}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return bool(json.loads(self.process.stdout.readline()))

    def rendered(self) -> int:
        """Since the last question."""
        count = len(self.log.read_text().splitlines()) if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return count


@pytest.fixture
def killer(parent: Dataset, normaliser: Path, tmp_path: Path) -> Iterator[Killer]:
    started = Killer(parent, normaliser, tmp_path)
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(10)


def test_killed_anywhere_only_what_is_missing_is_made(
    parent: Dataset, normaliser: Path, killer: Killer, tmp_path: Path
) -> None:
    derive(tmp_path / "calm", parent, attachments={"normalizer.bin": normaliser})
    whole, shards = files_below(tmp_path / "calm"), len(own_shards(Dataset.open(tmp_path / "calm")))
    root, step, in_between = tmp_path / "killed", 1, 0
    while True:
        shutil.rmtree(root, ignore_errors=True)
        killed = killer.derive(root, step)
        first = killer.rendered()
        if (root / CATALOG_FILE).exists():
            verify_dataset(root, progress=False)
        killer.derive(root)
        again = killer.rendered()
        assert files_below(root) == whole, f"killed at step {step}"
        assert first + again - shards in (0, 1), "more was made again than the shard that was cut off"
        in_between += first > 0 and 0 < again < shards
        if not killed:
            break
        step += 8
    assert step > 5 * shards
    assert in_between > 3


def test_another_recipe_takes_the_place_of_the_old_whole(
    parent: Dataset, normaliser: Path, killer: Killer, tmp_path: Path
) -> None:
    """Killed at any step, a reader sees the old data set with its normaliser, or the new one with its own."""
    old_normaliser = tmp_path / "old weights"
    old_normaliser.write_bytes(b"old")
    derive(tmp_path / "old", parent, attachments={"normalizer.bin": old_normaliser})
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    derive(tmp_path / "new", parent, "g2", attachments={"normalizer.bin": normaliser})
    whole = files_below(tmp_path / "new")
    plans = {Dataset.open(tmp_path / name).metadata["plan"]: name for name in ("old", "new")}
    assert len(plans) == 2
    root, step, seen = tmp_path / "changing", 2, set()
    killed = True
    while killed:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "old", root)
        killed = killer.derive(root, step, "g2")
        verify_dataset(root, progress=False)
        found = Dataset.open(root)
        seen.add(plans[found.metadata["plan"]])
        normaliser_of = {"old": b"old", "new": normaliser.read_bytes()}[plans[found.metadata["plan"]]]
        assert found.attachment_path("normalizer.bin").read_bytes() == normaliser_of
        killer.derive(root, None, "g2")
        assert files_below(root) == whole, f"killed at step {step}"
        step += 14
    assert seen == {"old", "new"}


def test_shards_of_a_derivation_that_was_given_up_do_not_count(
    parent: Dataset, normaliser: Path, killer: Killer, tmp_path: Path
) -> None:
    root = tmp_path / "derived"
    assert killer.derive(root, 50, "g1")
    assert any(path.name.startswith(".made-") for path in (root / "shards").iterdir())
    killer.rendered()
    killer.derive(root, None, "g2")
    derive(tmp_path / "calm", parent, "g2", attachments={"normalizer.bin": normaliser})
    assert killer.rendered() == len(own_shards(Dataset.open(root)))
    assert files_below(root) == files_below(tmp_path / "calm")
    assert os.listdir(root / "attachments") == os.listdir(tmp_path / "calm" / "attachments")
