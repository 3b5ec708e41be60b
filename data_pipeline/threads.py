"""How many CPU threads this process may keep busy, and who in it gets them (contract C16).

Decided here alone, from what the user allows and the machine has; everything that makes threads or processes asks.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import threadpoolctl  # type: ignore[import-untyped]

# Programs that set OMP_NUM_THREADS for the processes they start, where the user has not.
_LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun"}
_LAUNCHER_MODULES = {"accelerate.commands.launch", "accelerate.commands.accelerate_cli", "torch.distributed.run"}
_LAUNCHERS_OPTION = "--num_cpu_threads_per_process"
# What libraries that are loaded later look at.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ARROW_IO_THREADS",
    "ZARR_THREADING__MAX_WORKERS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)
_PROCESSES_HERE = "LOCAL_WORLD_SIZE"


@dataclass(frozen=True)
class ThreadShare:
    """threads: that a process may keep busy at once. reason: what decided, for people."""

    threads: int
    reason: str


@dataclass(frozen=True)
class Division:
    """Who has a process's share while it computes with the images that DALI decodes.

    compute: threads of torch, BLAS and the like. decode: DALI's. overlap: whether images are decoded while others are
    computed with. Without, each of the two waits for the other, so both may have the whole share.
    """

    compute: int
    decode: int
    overlap: bool


def thread_share() -> ThreadShare:
    """This process's share: of the cores, those of its affinity and CPU quota over the processes that a launcher
    started on this machine; of these what OMP_NUM_THREADS or `--num_cpu_threads_per_process` allows.

    OMP_NUM_THREADS counts as the user's unless the program that started this process set it by itself.
    """
    cores, processes = available_cores(), max(1, _number(os.environ.get(_PROCESSES_HERE)) or 1)
    share = max(1, cores // processes)
    among = f" among {processes} processes" if processes > 1 else ""
    asked = _number(os.environ.get("OMP_NUM_THREADS"))
    if asked is not None and asked < share and not _set_by_launcher(Path("/proc") / str(os.getppid())):
        return ThreadShare(asked, f"OMP_NUM_THREADS={asked}")
    return ThreadShare(share, f"{cores} core{'s' * (cores != 1)}{among}")


def divide(share: int, on_gpu: bool, streams: int = 1) -> Division:
    """Who gets how much of a share. streams: that are read side by side.

    With a GPU one thread feeds it, and the others decode meanwhile. On the CPU a step takes all threads, and so does
    the decoding between two steps: measured, no slower than decoding beside it, and nobody waits for a core.
    """
    if on_gpu and share > streams:
        return Division(1, (share - 1) // streams, True)
    return Division(1 if on_gpu else share, 1 if on_gpu else share, False)


def available_cores() -> int:
    """Cores that this process may use, at least 1: of its affinity, within the CPU quota of its control groups."""
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), cpu_quota())))


def limit_threads(threads: int) -> None:
    """Hold all pools of compute threads in this process to `threads`: BLAS, OpenMP, torch, Arrow, Zarr.

    Those that are loaded already at once, the others by their environment variables.
    """
    os.environ.update({name: str(threads) for name in _VARIABLES})
    threadpoolctl.threadpool_limits(threads)  # stays: nothing leaves it again
    loaded: dict[str, Any] = sys.modules  # their stubs know neither settings nor functions of all of them
    if "torch" in loaded:
        loaded["torch"].set_num_threads(threads)
    if "torch._inductor.config" in loaded:
        loaded["torch._inductor.config"].compile_threads = threads
    if "pyarrow" in loaded:
        loaded["pyarrow"].set_cpu_count(threads)
        loaded["pyarrow"].set_io_thread_count(threads)
    if "zarr" in loaded:
        loaded["zarr"].config.set({"threading.max_workers": threads})


def usable_workers(asked: int | None) -> int:
    """How many worker processes of one thread each this process may start: its share, or fewer that are asked for."""
    share = thread_share().threads
    return min(asked or share, share)


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that control groups (version 1 or 2) grant, as containers and Slurm set them; or infinity.

    A group has at most what every group above it has. In a container the own group may be the mounted root.
    """
    quotas = [math.inf]
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = PurePosixPath(path)
        for above in (group, *group.parents):
            quotas += (_quota_of(root / kind / str(above).lstrip("/")) for kind in ("", "cpu", "cpu,cpuacct"))
    return min(quotas)


def _quota_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _set_by_launcher(parent: Path) -> bool:
    """Whether OMP_NUM_THREADS is the word of the launcher that started this process, and not the user's.

    parent: its folder under /proc. The launcher's own environment is the user's; where it cannot be read, what the
    variable says is kept to.
    """
    try:
        command = (parent / "cmdline").read_bytes().decode(errors="replace").split("\0")
        environment = (parent / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    if not (_LAUNCHERS & {Path(part).name for part in command[:2]} or _LAUNCHER_MODULES & set(command[:4])):
        return False
    if any(_LAUNCHERS_OPTION.startswith(name) and len(name) > len("--num_c") for name in _options(command)):
        return False
    return not any(variable.startswith(b"OMP_NUM_THREADS=") for variable in environment)


def _options(command: Iterable[str]) -> Iterable[str]:
    """Names of a command line's options, as argparse takes them: - is _, a value may follow a sign."""
    for part in command:
        if part.startswith("--"):
            yield "--" + part[2:].partition("=")[0].replace("-", "_")


def _number(value: str | None) -> int | None:
    """The number that a variable says, of several (nested levels of OpenMP) the first; None where it says none."""
    first = (value or "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
