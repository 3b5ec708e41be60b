"""If this fails, nobody can check on a machine of their own that more images cost no more each."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.scale import ADDED, run, table


@pytest.mark.slow
def test_the_scale_benchmark_measures_every_step(tmp_path: Path) -> None:
    """At one size, whose training images fill three batches."""
    report = json.loads(json.dumps(run(tmp_path, [960])))
    steps = report["sizes"]["960"]
    assert steps["build"]["samples"] + steps["build"]["excluded"] == 960
    assert steps["add"]["samples"] + steps["add"]["excluded"] == 960 + ADDED
    assert steps["add"]["shards_kept"] == steps["build"]["shards_written"] > 0
    assert steps["epoch"]["images"] == 768
    assert min(steps["start"]["first batch"]) > 0
    assert all(0 < found["mib_before"] <= found["mib_at_most"] for found in steps.values())
    assert len(table(report)) == 2
