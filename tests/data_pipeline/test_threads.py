"""If these fail, a process takes cores that its user gave to something else, and both become slow."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import threadpoolctl
import torch

from data_pipeline import threads
from data_pipeline.catalog import Dataset
from data_pipeline.parallel import process_map
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from data_pipeline.threads import Division, cpu_quota, divide, thread_share, usable_workers
from tests.conftest import TINY_TYPES
from tests.launching import ROOT
from trainer.learners.topology import join_processes

UNSET = "-"


@pytest.mark.parametrize(
    ("variable", "processes", "cores", "share", "reason"),
    [
        (UNSET, 1, 8, 8, "8 cores"),
        (UNSET, 4, 8, 2, "8 cores among 4 processes"),
        (UNSET, 4, 2, 1, "2 cores among 4 processes"),
        ("1", 1, 8, 1, "OMP_NUM_THREADS=1"),
        ("3", 2, 8, 3, "OMP_NUM_THREADS=3"),
        ("3,2", 1, 8, 3, "OMP_NUM_THREADS=3"),
        ("16", 2, 8, 4, "8 cores among 2 processes"),
        ("0", 1, 1, 1, "1 core"),
        ("many", 1, 2, 2, "2 cores"),
    ],
)
def test_a_share_is_what_the_user_allows_of_what_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, variable: str, processes: int, cores: int, share: int, reason: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable != UNSET:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    assert thread_share() == threads.ThreadShare(share, reason)
    assert usable_workers(None) == usable_workers(share + 1) == share
    assert usable_workers(1) == 1


def test_no_division_gives_out_more_than_the_share() -> None:
    for share in range(1, 65):
        for streams in (1, 2):
            for on_gpu in (False, True):
                division = divide(share, on_gpu, streams)
                assert min(division.compute, division.decode) >= 1
                if division.overlap:
                    assert division.compute + streams * division.decode <= share
                else:
                    assert max(division.compute, division.decode) <= share
    assert divide(8, on_gpu=True) == Division(compute=1, decode=7, overlap=True)
    assert divide(8, on_gpu=False) == Division(compute=8, decode=8, overlap=False)


@pytest.mark.parametrize(
    ("command", "environment", "launchers_word"),
    [
        (["python", "/bin/accelerate", "launch", "train.py"], "HOME=/root", True),
        (["python", "-m", "accelerate.commands.launch", "train.py"], "HOME=/root", True),
        (["python", "/bin/torchrun", "--nproc-per-node=2", "train.py"], "HOME=/root", True),
        (["python", "-m", "torch.distributed.run", "train.py"], "HOME=/root", True),
        (["python", "/bin/accelerate", "launch", "train.py"], "OMP_NUM_THREADS=1", False),
        (["python", "/bin/accelerate", "launch", "--num_cpu_threads_per_process", "1", "a.py"], "HOME=/root", False),
        (["python", "/bin/accelerate", "launch", "--num-cpu-threads-per-process=1", "a.py"], "HOME=/root", False),
        (["python", "/bin/accelerate", "launch", "--num_processes=2", "a.py"], "HOME=/root", True),
        (["bash"], "HOME=/root", False),
        (["python", "sweep.py", "torchrun"], "HOME=/root", False),
    ],
)
def test_whose_word_a_variable_is(tmp_path: Path, command: list[str], environment: str, launchers_word: bool) -> None:
    (tmp_path / "cmdline").write_bytes("\0".join([*command, ""]).encode())
    (tmp_path / "environ").write_bytes(f"PATH=/bin\0{environment}\0".encode())
    assert threads._set_by_launcher(tmp_path) is launchers_word
    assert not threads._set_by_launcher(tmp_path / "another user's")


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/slurm/job/step\n", {"slurm/job/cpu.max": "400000 100000", "slurm/job/step/cpu.max": "max 100000"}, 4),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "800000 100000"}, 1),
        ("4:cpu,cpuacct:/docker/x\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, float("inf")),
        ("4:cpuset:/x\n", {"x/cpu.max": "100000 100000"}, float("inf")),
        ("0::/\n", {}, float("inf")),
    ],
)
def test_a_container_has_the_cores_of_its_quota(
    tmp_path: Path, groups: str, files: dict[str, str], cores: float
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, content in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(content + "\n")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "sys") == cores


def test_with_one_thread_decoding_and_computing_take_turns(
    tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI's threads rest while this one computes, whatever threads and prefetch the configuration asks for."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = StreamConfig(image_size=96, threads=4, prefetch=3)
    stream = Stream(tiny_dataset, config, splits=["train"], cell_types=TINY_TYPES, global_batch=24, training=True)
    before = set(os.listdir("/proc/self/task"))
    batches = stream.read()
    next(batches)
    decoding = own = 0.0
    for _ in range(5):
        others, mine = _others(), time.thread_time()
        next(batches)
        decoding += _others() - others
        others = _others()
        end = time.thread_time() + 0.03
        while time.thread_time() < end:  # a step
            pass
        own += _others() - others
        assert time.thread_time() > mine
    assert decoding > 0.005, "no thread but this one decodes: this test would see nothing"
    assert own < decoding / 5
    busy = [task for task in set(os.listdir("/proc/self/task")) - before if _seconds(task) > 0.02]
    assert len(busy) <= 1


def _others() -> float:
    """CPU seconds of all threads but this one."""
    return time.process_time() - time.thread_time()


def _seconds(task: str) -> float:
    """CPU seconds of a thread of this process."""
    try:
        fields = Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_joining_holds_every_pool_to_the_share(capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow

    assert join_processes() == Topology()
    assert torch.get_num_threads() == 1
    assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {1}
    assert pyarrow.cpu_count() == pyarrow.io_thread_count() == 1
    assert "threads: 1 (OMP_NUM_THREADS=1), which decode and compute in turn" in capsys.readouterr().err


def _pools(task: int) -> set[int]:
    import numpy  # noqa: F401  # its BLAS has a pool of a thread per core

    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


def test_a_worker_process_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert list(process_map(_pools, [1, 2], workers=2)) == [{1}, {1}]


SCRIPT = "from data_pipeline.threads import thread_share; print('share', thread_share().threads)"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is one thread, whatever anybody says")
def test_a_launcher_by_itself_takes_no_core_away_and_the_user_does(tmp_path: Path) -> None:
    """The real `accelerate launch`, which sets OMP_NUM_THREADS=1 where the user has set nothing."""
    script = tmp_path / "share.py"
    script.write_text(SCRIPT)
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", "--num_processes=1"]
    cores = len(os.sched_getaffinity(0))
    cases = [
        (accelerate, {}, [cores]),
        (accelerate, {"OMP_NUM_THREADS": "1"}, [1]),
    ]
    bare = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    running = [
        subprocess.Popen(
            [*command, str(script)],
            env={**bare, **variables, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for command, variables, _ in cases
    ]
    for process, (_, _, shares) in zip(running, cases, strict=True):
        said, _ = process.communicate()
        assert [int(line.split()[1]) for line in said.splitlines()] == shares
