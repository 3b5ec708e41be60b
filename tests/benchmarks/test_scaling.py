"""If these fail, what the README says of 64 GPUs follows from another formula than it names."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.launch import ROOT
from tests.benchmarks.scaling import FABRICS, GPUS, PUBLISHED_SPEED, Options, run, seconds_of_one_gpu, simulate, table
from tests.benchmarks.step_time import BACKWARD_SHARE, BUCKET_BYTES, Link, Step, fit_link, ring_all_reduce, waited_for

links = st.builds(Link, st.floats(1e7, 1e12), st.floats(1e-7, 1e-2))


def test_a_ring_sends_what_it_must() -> None:
    """Two processes exchange a half each, twice; the bytes of each process never exceed twice the whole."""
    link = Link(bandwidth=1e9, latency=1e-3)
    assert ring_all_reduce(1, 1e9, link) == 0
    assert ring_all_reduce(2, 1e9, link) == pytest.approx(1 + 2e-3)
    assert ring_all_reduce(4, 1e9, link) == pytest.approx(1.5 + 6e-3)
    assert ring_all_reduce(64, 1e9, Link(1e9, 0)) < 2


@given(links, st.sampled_from(GPUS[1:]))
def test_a_link_is_found_again_in_the_times_it_makes(link: Link, processes: int) -> None:
    sizes = [link.bandwidth * link.latency * processes * factor for factor in (0.1, 1, 10, 100)]
    found = fit_link(processes, sizes, [ring_all_reduce(processes, size, link) for size in sizes])
    assert (found.bandwidth, found.latency) == pytest.approx((link.bandwidth, link.latency), rel=1e-4)


@given(links, st.sampled_from(GPUS), st.floats(1e3, 1e10), st.floats(1e-3, 10))
def test_a_backward_pass_hides_what_it_lasts_and_never_the_last_portion(
    link: Link, processes: int, size: float, compute: float
) -> None:
    whole = waited_for(processes, size, link, compute, overlap=False)
    hidden = whole - waited_for(processes, size, link, compute, overlap=True)
    assert 0 <= hidden <= BACKWARD_SHARE * compute * (1 + 1e-9)
    portions = -(-size // BUCKET_BYTES)
    assert whole == pytest.approx(portions * ring_all_reduce(processes, size / portions, link))
    assert whole - hidden >= ring_all_reduce(processes, size / portions, link) * (1 - 1e-9)


def test_loading_goes_on_beside_the_rest_until_it_takes_longer() -> None:
    assert Step(compute=2, exchange=1, loading=2.5).seconds == 3
    assert [Step(2, 1, 2.5).bound, Step(2, 1, 4).bound, Step(2, 3, 4).bound] == ["compute", "loading", "exchange"]


def test_what_is_written_down_is_what_the_formulas_say() -> None:
    written = json.loads((ROOT / "tests/benchmarks/results/scaling.json").read_text())
    speed = written["loading"]["original size"]["images_per_second_and_core"]
    assert simulate(written["networks"], speed) == written["simulated"]
    assert len(written["simulated"]) == len(PUBLISHED_SPEED) * 2 * len(FABRICS) * 2 * len(GPUS)


def test_what_is_measured_on_gpus_takes_the_place_of_what_is_assumed() -> None:
    training = [{"model": "resnet50", "images": 16, "steps": [_step(1, 0.5), _step(2, 0.6)]}]
    link = Link(bandwidth=1e6, latency=0.0)
    rows = simulate({"senet154_ge": 1, "resnet50": 10**6}, 1e9, seconds_of_one_gpu(training), link)
    chosen = {"network": "resnet50", "images_per_gpu": 16, "gradient": "fp32"}
    seconds = {
        row["gpus"]: row["without overlap"]["milliseconds"] / 1000
        for row in rows
        if row.items() >= chosen.items() and row["fabric"] == next(iter(FABRICS))
    }
    assert seconds[1] == 0.5
    assert seconds[2] == pytest.approx(0.5 + ring_all_reduce(2, 4 * 10**6, link))


def _step(processes: int, seconds: float) -> dict[str, Any]:
    return {"processes": processes, "batches": "synthetic", "measured": {"low": seconds}}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_scaling_benchmark_measures_every_part(tmp_path: Path) -> None:
    result = json.loads(json.dumps(run(Options(repeats=1, laps=0.05, largest_exchange=1), tmp_path)))
    assert all(row["seconds"] > 0 for part in result["exchange"].values() for row in part["rows"])
    found = [step for case in result["training"] for step in case["steps"]]
    assert {(step["processes"], step["batches"]) for step in found} == {
        (processes, batches) for processes in (1, 2) for batches in ("synthetic", "stream")
    }
    assert all(step["measured"]["median"] > 0 for step in found)
    assert all(step["efficiency"]["median"] == 1 for step in found if step["processes"] == 1)
    assert table(result)
