"""The share of a cluster that a trial or stage gets, and its command line."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resources:
    """Resources of a trial or a stage, all its processes together."""

    cpu: int = 1  # cores
    gpu: float = 0  # GPUs; 0: computes on the CPU, 0.5: two trials share one
    workers: int = 1  # processes, each with its share of the cores, and a GPU of its own if there are any

    def __post_init__(self) -> None:
        for name in ("cpu", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"resources_per_trial.{name}={getattr(self, name)}: must be at least 1")
        if self.cpu % self.workers:
            raise ValueError(
                f"resources_per_trial.cpu={self.cpu}: divided over workers={self.workers}, so give a multiple of that"
            )
        shared = self.workers == 1 and 0 < self.gpu <= 1
        if self.gpu not in (0, self.workers) and not shared:
            raise ValueError(
                f"resources_per_trial.gpu={self.gpu:g}: a process computes on one GPU: give as many as workers="
                f"{self.workers}, a part of one to a single worker, or 0"
            )

    @property
    def threads(self) -> int:
        """CPU cores, and so threads, of each process."""
        return self.cpu // self.workers

    @property
    def forks(self) -> bool:
        """Whether the work is one process without a GPU, and so can be forked from one that has its imports."""
        return self.workers == 1 and not self.gpu

    @property
    def of_worker(self) -> dict[str, float]:
        """One process's share, by Ray's names."""
        return {"CPU": self.threads, "GPU": self.gpu / self.workers}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of each process. The number of threads decides the order of sums."""
        return {"OMP_NUM_THREADS": str(self.threads)} | ({} if self.gpu else {"ACCELERATE_USE_CPU": "true"})

    def command(self, launcher: Path, arguments: Sequence[str]) -> list[str]:
        """A launcher's command line, with one process of this machine for each worker."""
        # torchrun starts several on the CPU too, and picks a free port, so that stages can run at the same time.
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.workers}"]
        return [sys.executable, *(several if self.workers > 1 else []), str(launcher), *arguments]

    def shell_line(self, command: Sequence[str]) -> str:
        """A command as a shell line that works in any folder: relative paths in its arguments start here."""
        environment = [f"{name}={value}" for name, value in self.environment.items()]
        return f"cd {shlex.quote(os.getcwd())} && {shlex.join([*environment, *command])}"
