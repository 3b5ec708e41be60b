"""If these fail, a power cut costs a night of drawing, or leaves a bank that looks finished and is not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.banks.image_bank import INDICES_PER_SHARD, MANIFEST_FILE, ImageBank
from data_pipeline.errors import UserError
from tests.data_pipeline.raw_images import files_below
from tests.generated_images import Draw, bank_facts, make_bank

FACTS = bank_facts(("basophil",))
COUNT = 2 * INDICES_PER_SHARD + 5

# Fills in children of one small process; a child is killed before its `step`-th call that changes or secures
# something on disk. Zarr's arrays move into place by os.replace too.
_KILLER = """
import json, os, pathlib, sys
from tests.data_pipeline.dying import DISK_CALLS, die_before
from tests.generated_images import Draw, bank_facts, make_bank

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        if order["step"] is not None:
            die_before(order["step"], DISK_CALLS[:4])
        draw = Draw(log=pathlib.Path(order["log"]))
        make_bank(pathlib.Path(order["root"]), order["count"], bank_facts(("basophil",)), draw)
        os._exit(0)
    print(json.dumps(os.WIFSIGNALED(os.waitpid(child, 0)[1])), flush=True)
"""


class Killer:
    """Fillings that are killed; which images each has drawn."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _KILLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def fill(self, root: Path, step: int | None, count: int = COUNT) -> bool:
        """Whether the kill came before the end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"root": str(root), "step": step, "count": count, "log": str(self.log)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return bool(json.loads(self.process.stdout.readline()))

    def drawn(self) -> list[str]:
        """Since the last question."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Killer]:
    started = Killer(tmp_path)
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(10)


def test_killed_anywhere_it_is_unfinished_and_only_what_is_missing_is_drawn(killer: Killer, tmp_path: Path) -> None:
    make_bank(tmp_path / "calm", COUNT, FACTS)
    whole = files_below(tmp_path / "calm")
    root, step, in_between, killed = tmp_path / "killed", 1, 0, True
    while killed:
        shutil.rmtree(root, ignore_errors=True)
        killed = killer.fill(root, step)
        if not (root / MANIFEST_FILE).exists():
            with pytest.raises(UserError, match=r"unfinished|no image bank here"):
                ImageBank.open(root)
        first = killer.drawn()
        killer.fill(root, None)
        again = killer.drawn()
        assert files_below(root) == whole, f"killed at step {step}"
        twice = set(first) & set(again)
        assert len({int(name.rpartition("/")[2]) // INDICES_PER_SHARD for name in twice}) <= 1, f"step {step}"
        assert len(set(first) | set(again)) == COUNT
        in_between += 0 < len(again) < COUNT
        step += 7
    assert step > 40
    assert in_between > 3


def test_killed_while_it_grows_the_smaller_bank_stays_whole(killer: Killer, tmp_path: Path) -> None:
    grown = COUNT + INDICES_PER_SHARD
    old = make_bank(tmp_path / "old", COUNT, FACTS)
    new = make_bank(tmp_path / "new", grown, FACTS)
    root, step, seen, killed = tmp_path / "growing", 1, set(), True
    while killed:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(old.root, root)
        killed = killer.fill(root, step, grown)
        bank = ImageBank.open(root)
        bank.images(range(len(bank)))
        seen.add(bank.content_hash)
        killer.fill(root, None, grown)
        assert files_below(root) == files_below(new.root), f"killed at step {step}"
        step += 9
    assert seen == {old.content_hash, new.content_hash}


def test_growth_that_was_given_up_does_not_count(killer: Killer, tmp_path: Path) -> None:
    root = tmp_path / "bank"
    make_bank(root, COUNT, FACTS)
    assert killer.fill(root, 60, COUNT + 3 * INDICES_PER_SHARD)
    made = set(killer.drawn())
    assert made
    draw = Draw()
    bank = make_bank(root, COUNT + 10, FACTS, draw)
    assert bank.content_hash == make_bank(tmp_path / "fresh", COUNT + 10, FACTS).content_hash
    assert {f"{name}/{index}" for name, indices in draw.calls for index in indices}.isdisjoint(made)
