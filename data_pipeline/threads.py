"""How many CPU threads this process may use, and for what."""

import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import threadpoolctl  # type: ignore[import-untyped]

# Programs that set OMP_NUM_THREADS for the processes they start unless the user has set it.
_LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun"}
_LAUNCHER_MODULES = {"accelerate.commands.launch", "accelerate.commands.accelerate_cli", "torch.distributed.run"}
_LAUNCHERS_OPTION = "--num_cpu_threads_per_process"
# Read by libraries when they are loaded.
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
    """How many threads a process may use."""

    threads: int
    reason: str  # what decided it, for people


@dataclass(frozen=True)
class Division:
    """How a process's threads are divided between computing and decoding."""

    compute: int  # threads of torch, BLAS and the like
    decode: int  # threads of DALI
    overlap: bool  # whether both run at once; if not, they take turns and each may use all threads


def thread_share() -> ThreadShare:
    """This process's share: the available cores divided by the launcher's processes on this machine.

    At most what OMP_NUM_THREADS or `--num_cpu_threads_per_process` allows; OMP_NUM_THREADS does not count if the
    launcher of this process has set it, and not the user.
    """
    cores, processes = available_cores(), max(1, _number(os.environ.get(_PROCESSES_HERE)) or 1)
    share = max(1, cores // processes)
    among = f" among {processes} processes" if processes > 1 else ""
    asked = _number(os.environ.get("OMP_NUM_THREADS"))
    if asked is not None and asked < share and not _set_by_launcher(Path("/proc") / str(os.getppid())):
        return ThreadShare(asked, f"OMP_NUM_THREADS={asked}")
    return ThreadShare(share, f"{cores} core{'s' * (cores != 1)}{among}")


def divide(share: int, on_gpu: bool, streams: int = 1) -> Division:
    """Divide a share of threads. streams: number of streams that are read side by side.

    With a GPU one thread feeds it while the others decode. On the CPU computing and decoding take turns with all
    threads: measured, that is no slower than both at once.
    """
    if on_gpu and share > streams:
        return Division(1, (share - 1) // streams, True)
    return Division(1 if on_gpu else share, 1 if on_gpu else share, False)


def available_cores() -> int:
    """Cores that affinity and the CPU quota of the control groups allow this process, at least 1."""
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), cpu_quota())))


def limit_threads(threads: int) -> None:
    """Limit the thread pools of BLAS, OpenMP, torch, Arrow and Zarr, of libraries loaded now or later."""
    os.environ.update({name: str(threads) for name in _VARIABLES})
    threadpoolctl.threadpool_limits(threads)  # stays in force: the context is never left
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
    """How many single-threaded worker processes this process may start: its share, or fewer if asked for fewer."""
    share = thread_share().threads
    return min(asked or share, share)


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """The CPU quota, in cores, of the control groups (version 1 or 2) that containers and Slurm set; or infinity.

    The least of the own group's and all groups' above it. In a container the own group may be the mounted root.
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
    """Whether the launcher that started this process has set OMP_NUM_THREADS, and not the user.

    parent: the launcher's folder under /proc; its environment is the user's. False if that cannot be read.
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
    """Option names of a command line as argparse reads them: - is _, and =VALUE may follow."""
    for part in command:
        if part.startswith("--"):
            yield "--" + part[2:].partition("=")[0].replace("-", "_")


def _number(value: str | None) -> int | None:
    """A variable's positive number, the first of several (nested levels of OpenMP); None for any other value."""
    first = (value or "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
