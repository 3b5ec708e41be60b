"""If these fail, a run that loses machines, or is given others, trains on some images twice and on others never."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from data_pipeline.catalog import Dataset
from tests.conftest import Launch, Start
from tests.free_port import free_port
from tests.launchers.test_launchers import assert_refused
from tests.launching import ROOT, TIMEOUT
from tests.trainer.test_training import TINY, final_state, kill_when, losses
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.log import read_records

DRIVER = "tests/trainer/recorded_classifier.py"
GLOBAL_BATCH = 12
Records = dict[int, list[str]]


def arguments(dataset: Dataset) -> list[str]:
    """A network whose training is the same on any number of processes, up to rounding."""
    return [
        f"shards={dataset.root}",
        "model=timm",
        "model.timm_name=test_efficientnet_gn",
        "train.epochs=6",
        "train.checkpoint_every=4",
        "optimizer.name=sgd",
        "optimizer.learning_rate=0.005",
        *TINY,
    ]


def trained_on(folder: Path) -> Records:
    """The ids of each global batch in the order of their positions, all processes and starts together.

    What a start did after the checkpoint that the next one began with is undone, and left out.
    """
    files = [(tuple(map(int, path.stem.split("-"))), path) for path in folder.glob("*.jsonl")]
    starts = sorted({first for (first, _, _), _ in files})
    ends = dict(zip(starts, [*starts[1:], sys.maxsize], strict=True))
    found: dict[int, dict[int, str]] = defaultdict(dict)
    for (first, _, _), path in files:
        for text in path.read_text().splitlines():
            line = json.loads(text)
            if line["batch"] < ends[first]:
                for position, identity in zip(line["positions"], line["ids"], strict=True):
                    assert position not in found[line["batch"]], "two processes trained on one place of a batch"
                    found[line["batch"]][position] = identity
    return {batch: [ids[position] for position in sorted(ids)] for batch, ids in found.items()}


def starts(folder: Path) -> list[tuple[int, int]]:
    """(first global batch, processes) of each start, in turn."""
    found = (path.stem.split("-") for path in folder.glob("*.jsonl"))
    return sorted({(int(first), int(processes)) for first, processes, _ in found})


def newest(run: Path) -> int:
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    return 0 if checkpoint is None else checkpoint.step


def beyond_checkpoint(run: Path, before: int) -> bool:
    """Whether a checkpoint after `before` is written, and steps after it are logged, which a kill now undoes."""
    saved = newest(run)
    return saved > before and any(record["step"] > saved for record in read_records(run))


def undisturbed(given: list[str], launch: Launch, folder: Path) -> Records:
    records = folder / "undisturbed-records"
    records.mkdir()
    done = launch(DRIVER, *given, "run=undisturbed", RECORDS=str(records))
    assert done.returncode == 0, done.stderr
    whole = trained_on(records)
    assert all(len(ids) == len(set(ids)) == GLOBAL_BATCH for ids in whole.values())
    assert sorted(whole) == list(range(max(record["step"] for record in read_records(folder / "undisturbed"))))
    return whole


@pytest.mark.slow
def test_a_run_taken_up_by_one_three_and_two_processes_sees_the_ids_of_a_whole_one(
    tiny_dataset: Dataset, launch: Launch, start: Start, tmp_path: Path
) -> None:
    """SIGKILL on 2 processes, on 1 and on 3, each between two checkpoints; 2 finish. Losses agree to 1e-3."""
    whole = undisturbed(arguments(tiny_dataset), launch, tmp_path)
    records, run = tmp_path / "records", tmp_path / "run"
    records.mkdir()
    given = (DRIVER, *arguments(tiny_dataset), "run=run")
    for processes in (2, 1, 3):
        killed_when = functools.partial(beyond_checkpoint, run, newest(run))
        kill_when(start(*given, processes=processes, RECORDS=str(records)), killed_when)
    done = launch(*given, processes=2, RECORDS=str(records))
    assert done.returncode == 0, done.stderr
    assert [processes for _, processes in starts(records)] == [2, 1, 3, 2]
    assert trained_on(records) == whole
    torch.testing.assert_close(losses(run), losses(tmp_path / "undisturbed"), rtol=1e-3, atol=1e-4)
    for weights in ("module", "average"):
        expected = final_state(tmp_path / "undisturbed")[weights]
        torch.testing.assert_close(final_state(run)[weights], expected, rtol=1e-3, atol=1e-4)


def test_machines_that_do_not_share_the_run_are_told_so(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """Each would go on from a step of its own, or wait for the other until the exchange gives up."""
    given = [f"shards={tiny_dataset.root}", "model=senet_tiny_ge", "train.epochs=1", "run=run-{rank}", *TINY]
    assert launch("train_classifier", *given).returncode == 0
    refused = launch("train_classifier", *given, processes=2)
    assert_refused(refused, "process 1 on", "finds no checkpoint", "put run= where all machines see the same files")
    assert not (tmp_path / "run-1").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slurm_job_loses_a_node_goes_on_alone_and_takes_up_another(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """configs/torchrun/slurm.sh on nodes of one process each, all on this machine; one is killed, one comes later."""
    longer = [*arguments(tiny_dataset), "train.epochs=25"]
    whole = undisturbed(longer, launch, tmp_path)
    records, run = tmp_path / "records", tmp_path / "run"
    records.mkdir()
    job = SlurmJob(tmp_path, [str(ROOT / DRIVER), *longer, "run=run"], RECORDS=str(records), PAUSE="0.25")
    try:
        job.start_node()
        job.start_node()
        job.wait_until(lambda: beyond_checkpoint(run, 0))
        job.lose(1)
        job.wait_until(lambda: len(starts(records)) == 2 and beyond_checkpoint(run, starts(records)[1][0]))
        job.start_node()
        job.wait_until(lambda: job.nodes[0].poll() is not None)
        assert job.nodes[0].returncode == job.nodes[2].wait(60) == 0, job.log
    finally:
        for node in range(len(job.nodes)):
            job.lose(node)
    assert [processes for _, processes in starts(records)] == [2, 1, 2]
    assert trained_on(records) == whole
    assert (run / "report.html").exists()


class SlurmJob:
    """The job's script on nodes that are all this machine, with an `srun` that runs its command where it is."""

    def __init__(self, folder: Path, command: list[str], **environment: str) -> None:
        programs = folder / "bin"
        programs.mkdir()
        for name, content in (
            ("scontrol", "echo localhost; echo other"),
            ("srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"'),
        ):
            (programs / name).write_text(f"#!/bin/bash\n{content}\n")
            (programs / name).chmod(0o755)
        port = str(free_port())
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._command = ["bash", str(ROOT / "configs/torchrun/slurm.sh"), *command]
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "nodes",
            "SLURM_JOB_ID": "7",
            "PROCESSES_PER_NODE": "1",
            "RENDEZVOUS_PORT": port,
            **environment,
        }

    @property
    def log(self) -> str:
        """What the first node said."""
        return (self._folder / "log-0").read_text()

    def start_node(self) -> None:
        number = len(self.nodes)
        # All have the first one's name. torchrun waits 30 s for nodes that may still come, if nothing is said.
        patience = f"is_host={int(number == 0)},last_call_timeout=15,keep_alive_interval=1"
        with (self._folder / f"log-{number}").open("wb") as log:
            node = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**self._environment, "PET_RDZV_CONF": patience},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.nodes.append(node)

    def lose(self, number: int) -> None:
        """SIGKILL to torchrun and all processes under it at once, as where a machine goes down."""
        node = self.nodes[number]
        if node.poll() is None:
            agent = psutil.Process(node.pid)
            for process in (agent, *agent.children(recursive=True)):
                process.send_signal(signal.SIGKILL)
            node.wait()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """AssertionError with the first node's log where it ends before, or time is up."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, self.log
            assert self.nodes[0].poll() in (None, 0), self.log
            time.sleep(0.05)
