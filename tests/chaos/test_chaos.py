"""If this fails, a kill, a damaged file or a full disk costs a user work, or the chaos test has lost its teeth."""

import json
import random
from pathlib import Path

from tests.chaos.damage import DAMAGES
from tests.chaos.moments import draw
from tests.conftest import Launch


def test_a_miniature_of_the_chaos_test_loses_nothing(launch: Launch, tmp_path: Path) -> None:
    done = launch("tests/chaos/miniature.py", str(tmp_path / "chaos"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "chaos/table.json").read_text())["rows"]
    assert {row["kind"] for row in rows} >= {"kills", "damaged files"}
    assert [row["lost"] for row in rows] == [[]] * len(rows)
    assert all(row["tries"] for row in rows)


def test_moments_fall_before_and_after_changes_and_between(tmp_path: Path) -> None:
    numbers = random.Random(0)
    moments = [draw(numbers, 2.0, 40) for _ in range(200)]
    assert {moment.kind for moment in moments} == {"time", "before a change", "after a change"}
    assert all(0 <= moment.seconds <= 2 and 0 <= moment.change <= 40 for moment in moments)


def test_every_damage_changes_the_file(tmp_path: Path) -> None:
    for damage in DAMAGES.values():
        path = tmp_path / "file"
        path.write_bytes(bytes(range(1, 200)))
        damage(path, random.Random(0))
        assert not path.exists() or path.read_bytes() != bytes(range(1, 200))
