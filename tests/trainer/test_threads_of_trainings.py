"""If these fail, two trainings beside each other, one thread each, fight for the cores that they were to share."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from data_pipeline.catalog import Dataset
from tests.launching import ROOT

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "python": [sys.executable],
    "accelerate launch": [str(BIN / "accelerate"), "launch", "--cpu", "--num_processes=1"],
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2"],
}
SETTINGS = ("model=senet_tiny_ge", "data.image_size=64", "train.global_batch=24", "train.epochs=100000")
SECONDS, SAMPLES = 4.0, 80
PATIENCE = 240.0


@contextmanager
def trainings(dataset: Dataset, folder: Path, *launchers: str) -> Iterator[list[psutil.Process]]:
    """Trainings at work, one thread each: the processes that compute, once each of them takes steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    runs = [folder / str(number) for number in range(len(launchers))]
    starters = []
    for launcher, run in zip(launchers, runs, strict=True):
        command = [*LAUNCHERS[launcher], str(ROOT / "launchers/train_classifier.py"), f"shards={dataset.root}"]
        with (folder / f"{run.name}.log").open("w") as log:
            started = subprocess.Popen([*command, f"run={run}", *SETTINGS], env=environment, stdout=log, stderr=log)
        starters.append(psutil.Process(started.pid))
    try:
        end = time.monotonic() + PATIENCE
        while not all((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size for run in runs):
            logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
            assert time.monotonic() < end, logs
            assert all(starter.status() != psutil.STATUS_ZOMBIE for starter in starters), logs
            time.sleep(0.5)
        yield [leaf for starter in starters for leaf in (starter.children() or [starter])]
    finally:
        for process in [child for starter in starters for child in (*starter.children(recursive=True), starter)]:
            process.kill()
            process.wait()


def running_threads(process: psutil.Process) -> int:
    """Threads of a process that have work, whether or not a core is free for them."""
    states = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        try:
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        except OSError:
            continue
    return states.count("R")


def speed(run: Path) -> list[float]:
    """Images per second of each logged step."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["images_per_second"] for record in records if record["kind"] == "step"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launchers", [("python",), ("accelerate launch",), ("torchrun",), ("python", "accelerate launch")]
)
def test_with_one_thread_each_no_process_has_two_at_work(
    tiny_dataset: Dataset, tmp_path: Path, launchers: tuple[str, ...]
) -> None:
    with trainings(tiny_dataset, tmp_path, *launchers) as processes:
        assert len(processes) == len(launchers) + launchers.count("torchrun")
        samples: list[list[int]] = []
        before, start = [sum(process.cpu_times()[:2]) for process in processes], time.monotonic()
        for _ in range(SAMPLES):
            samples.append([running_threads(process) for process in processes])
            time.sleep(SECONDS / SAMPLES)
        took = time.monotonic() - start
        busy = [sum(process.cpu_times()[:2]) - was for process, was in zip(processes, before, strict=True)]
    for number, seconds in enumerate(busy):
        counts = sorted(counted[number] for counted in samples)
        print(f"{launchers}: process {number}: {seconds / took:.2f} cores, threads at work {counts}")
        assert seconds <= 1.1 * took
        # One hands over to another now and then, and is seen before it rests.
        assert counts[int(0.8 * SAMPLES)] <= 1
        assert counts[-1] >= 1
