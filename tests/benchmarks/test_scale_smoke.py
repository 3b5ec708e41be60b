"""If this fails, nobody can check on a machine of their own that more images cost no more each."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.scale import ADDED, run, table


@pytest.mark.slow
def test_the_scale_benchmark_measures_every_step(tmp_path: Path) -> None:
    """At one size, whose training images fill three batches, and with forged rows."""
    report = json.loads(json.dumps(run(tmp_path, [960], [1200, 2400])))
    steps = report["sizes"]["960"]
    assert steps["build"]["samples"] + steps["build"]["excluded"] == 960
    assert steps["add"]["samples"] + steps["add"]["excluded"] == 960 + ADDED
    assert steps["add"]["shards_kept"] == steps["build"]["shards_written"] > 0
    assert steps["epoch"]["images"] == 768
    assert min(steps["start"]["first batch"]) > 0
    assert all(0 < found["mib_before"] <= found["mib_at_most"] for found in steps.values())
    rows = report["rows"]["2400"]
    assert rows["build"]["samples"] == 2400
    assert (rows["add"]["row_files_written"], rows["add"]["row_files_kept"]) == (1, 1)
    assert len(table(report)) == 6
