"""If this fails, minutes on a GPU are spent on finding out why: the whole command, at tiny sizes, on the CPU."""

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from tests.benchmarks import gpu_share
from tests.benchmarks.gpu import __main__ as command
from tests.benchmarks.gpu.classifier import memory_cap
from tests.benchmarks.gpu.data import CELLS, LOADED
from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.parts import MINUTES
from tests.benchmarks.gpu.rows import Record, Row, measure_rows
from tests.benchmarks.launch import ROOT
from tests.benchmarks.peers import PEERS
from tests.benchmarks.phases import PhaseClock
from tests.conftest import Launch, Start
from tests.trainer.test_training import kill_when

COMMAND = "tests/benchmarks/gpu/__main__.py"
TINY = (
    "minutes=20",
    "image_size=32",
    *("seconds=0.01", "repeats=1", "loader_batch=8", "workers=1"),
    *("models=senet_tiny_ge", "batch=8", "compile=false", "capped_micro_batch=4"),
    *("gans=ac_gan,cgan", "gan_steps=1"),
    "gan_settings=data.image_size=32,train.global_batch=4,model.generator.width=4,model.critic.width=4",
    *("result_model=senet_tiny_ge", "result_domain=giemsa", "result_steps=2"),
)


@pytest.fixture
def data(tmp_path: Path, two_stains: Dataset) -> Path:
    """Laid out as tests/benchmarks/gpu/data.py does it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in (CELLS, *LOADED):
        (folder / name).symlink_to(two_stains.root)
    return folder


def content(out: Path, part: str) -> dict[str, Any]:
    path = out / f"{part}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"rows": {}, "attempts": {}}


def test_stopped_in_its_middle_and_given_again_it_measures_everything_once(
    data: Path, tmp_path: Path, start: Start, launch: Launch
) -> None:
    out = tmp_path / "out"
    given = (COMMAND, f"out={out}", f"data={data}", *TINY)
    kill_when(start(*given), _within(out, "classifier"))
    rows = {part: content(out, part)["rows"] for part in MINUTES}
    assert 0 < len(rows["classifier"]) < len(content(out, "classifier")["planned"])

    done = launch(*given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("no GPU, all on the CPU; 20 minutes:")
    assert f"right: {20 * 2 / 9:.1f} minutes, {len(rows['right'])} rows are there already" in done.stdout
    assert "everything was measured" in done.stdout
    for part, before in rows.items():
        found = content(out, part)
        assert list(found["rows"]) != []
        assert set(found["rows"]) == set(found["planned"])
        assert {name: found["rows"][name] for name in before} == before  # kept, not measured again
        assert found["machine"]["gpu"] is None
    outcomes = {name: row["outcome"] for name, row in content(out, "right")["rows"].items()}
    assert set(outcomes.values()) == {"passed"}
    loaded = content(out, "loader")
    peers = {name.removeprefix("original: ") for name in loaded["rows"]} & set(PEERS.values())
    assert peers == {PEERS[module] for module, installed in loaded["peers"].items() if installed}
    assert loaded["rows"]["original: stream, flip"]["images_per_second"]["median"] > 0
    assert content(out, "classifier")["rows"]["senet_tiny_ge: timm"]["images_per_second"] > 0
    assert {"data", "critic", "generator"} <= set(content(out, "gans")["rows"]["ac_gan"]["phases"])
    accuracy = content(out, "result")["rows"]["senet_tiny_ge"]["evaluation"]["scores"]["overall"]["accuracy"]
    assert 0 <= accuracy["value"] <= 1
    assert (out / "report.html").exists()


def _within(out: Path, part: str) -> Callable[[], bool]:
    """While a part measures a row, and others of its rows are there."""
    return lambda: bool(content(out, part)["rows"] and content(out, part)["attempts"])


# Rows and parts


def measured(record: Record, *rows: tuple[str, Callable[[], dict[str, Any]]], seconds: float = 0.0) -> list[str]:
    """What is said while these rows are measured, with a minute's time."""
    said: list[str] = []
    given = [Row(name, measure, seconds) for name, measure in rows]
    measure_rows(given, record, time.monotonic() + 60, said.append)
    return said


def fail() -> dict[str, Any]:
    raise RuntimeError("out of memory")


def never() -> dict[str, Any]:
    raise AssertionError("measured again")


def test_a_row_that_fails_costs_only_itself_and_is_tried_at_the_next_start(tmp_path: Path) -> None:
    path, options = tmp_path / "part.json", {"batch": 8}
    record = Record(path, options)
    measured(record, ("first", fail), ("second", lambda: {"speed": 2.0}))
    assert json.loads(path.read_text())["failed"] == {"first": "RuntimeError: out of memory"}
    again = Record(path, options)
    assert again.missing(["first", "second"]) == []  # within one start it is not tried again
    again.start_again()
    assert measured(again, ("first", lambda: {"speed": 1.0}), ("second", never)) == ["first (0.0 s): speed 1"]
    assert set(Record(path, options).content["rows"]) == {"first", "second"}


def test_what_was_cut_off_comes_last_and_at_its_third_time_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    for attempts in (1, 2, 3):
        record = Record(path, {})
        record.plan(["hangs", "other"])
        record.begin("hangs")  # and the process is killed
        assert Record(path, {}).missing(["hangs", "other"]) == ["other", "hangs"]
        assert Record(path, {}).worth_trying("hangs") == (attempts < 3)
    last = Record(path, {})
    assert measured(last, ("hangs", never), ("other", dict)) == ["other (0.0 s): "]
    assert last.content["left_out"] == {"hangs": "begun 3 times and never ended"}


def test_a_row_is_not_begun_without_time_for_it(tmp_path: Path) -> None:
    record = Record(tmp_path / "part.json", {})
    assert measured(record, ("long", never), seconds=3600) == []
    assert record.content["left_out"]["long"].startswith("no time: it takes about 3600 s")


def test_results_of_other_options_are_refused(tmp_path: Path) -> None:
    Record(tmp_path / "part.json", {"batch": 8}).write()
    with pytest.raises(UserError, match="measured with batch=8, not 16"):
        Record(tmp_path / "part.json", {"batch": 16})


@pytest.mark.parametrize(
    ("part", "starts", "message"),
    [("hangs", 1, "loader: stopped at its limit"), ("crashes", 3, f"loader: its process ended with {-signal.SIGKILL}")],
    ids=["hangs", "crashes"],
)
def test_a_part_that_hangs_or_crashes_costs_only_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: str,
    starts: int,
    message: str,
) -> None:
    def measure(name: str, options: Options, deadline: float) -> None:
        os.setsid()
        with (tmp_path / "starts").open("a") as file:
            file.write("started\n")
        if part == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    monkeypatch.setattr(command, "measure_part", measure)
    begun = time.monotonic()
    command._run_part(Options(out=str(tmp_path)), "loader", begun + 1)
    assert time.monotonic() - begun < 30
    assert message in capsys.readouterr().out
    assert len((tmp_path / "starts").read_text().splitlines()) == starts


# Code that only a GPU runs, with a fake device


class Event:
    """A CUDA event of a device whose time goes on by a second with every event."""

    now = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        Event.now += 1
        self.at = Event.now

    def elapsed_time(self, end: "Event") -> float:
        return 1000.0 * (end.at - self.at)


def test_phases_are_the_times_between_the_device_s_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    clock = PhaseClock(torch.device("cuda"))
    with clock.phase("before the start"):
        pass
    clock.restart()
    with clock.phase("critic"), clock.phase("penalty"):
        pass
    clock.stop()
    with clock.phase("after the end"):
        pass
    assert clock.shares() == {"other": 0.4, "critic": 0.4, "penalty": 0.2}


def test_a_gpu_s_share_is_the_mean_of_the_driver_s_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = itertools.cycle([20, 40])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: next(samples))
    monkeypatch.setattr(gpu_share, "_EVERY_SECONDS", 0.001)
    with gpu_share.GpuShare() as gpu:
        time.sleep(0.3)
    assert gpu.share == pytest.approx(0.3, abs=0.1)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 1 / 0)
    with gpu_share.GpuShare() as gpu:
        time.sleep(0.05)
    assert gpu.share is None


def test_a_cap_is_a_share_of_the_gpu_s_memory_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    with pytest.raises(RuntimeError), memory_cap(torch.device("cuda", 0), 8.0):
        raise RuntimeError("out of memory")
    assert shares == [0.1, 1.0]


def test_parts_that_are_missing_are_told(tmp_path: Path) -> None:
    """A machine that has all but one would else unpack half a wheel."""
    unpack = ["bash", str(ROOT / "tests/benchmarks/gpu_unpack.sh"), str(tmp_path), str(tmp_path / "there")]
    nothing = subprocess.run(unpack, capture_output=True, text=True)
    (tmp_path / "part-1-of-2").touch()
    one = subprocess.run(unpack, capture_output=True, text=True)
    assert (nothing.returncode, one.returncode) == (2, 2)
    assert "no part in" in nothing.stderr
    assert f"1 of 2 parts in {tmp_path}: carry the others too" in one.stderr
    assert not (tmp_path / "there").exists()
