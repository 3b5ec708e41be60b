"""Launchers as processes of their own, forked from a server that has already imported what they import.

Importing torch, torchvision and torchmetrics takes longer than a tiny training; a forked process is
as real as a started one: it has its own memory, joins others over gloo and can be killed.
"""

import multiprocessing
import os
import runpy
import sys
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from tests.free_port import free_port

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 240.0
# As of nice(1): about a tenth of the processor time that another process gets.
_LOW_PRIORITY = 10

# One compute thread: equal sums whatever else the machine does, and room for two processes.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

_CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "launchers.audit",
    "launchers.balance",
    "launchers.build_shards",
    "launchers.evaluate",
    "launchers.export",
    "launchers.normalize_stains",
    "launchers.plan",
    "launchers.predict",
    "launchers.review",
    "launchers.synthesize",
    "launchers.train_classifier",
    "launchers.train_conditional_gan",
    "launchers.train_detector",
    "launchers.train_few_shot_gan",
    "launchers.train_stain_gan",
    # What these import when their work begins.
    "data_pipeline.audit",
    "data_pipeline.banks.balance",
    "trainer.runs.training",
    "trainer.tasks.classification.task",
    "trainer.tasks.classification.inference.export",
    "trainer.tasks.conditional.task",
    "trainer.tasks.detection.task",
    "trainer.tasks.few_shot.task",
    "trainer.tasks.stain.normalization",
    "trainer.tasks.classification.inference.prediction",
    "trainer.tasks.classification.evaluation.scoring",
    "trainer.tasks.generation.scoring",
    "trainer.tasks.stain.scoring",
    "trainer.tasks.stain.task",
    "trainer.tasks.generation.synthesis",
    # What these import at their place of use.
    "hydra",
    "scipy.optimize",
    "scipy.sparse.csgraph",
    "timm",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "trainer.metrics.classification",
    "trainer.planning.plan",
    "trainer.tasks.classification.training.model_advice",
    "trainer.tasks.classification.reports.model_card",
    "trainer.tasks.classification.training.fitting",
    "trainer.tasks.classification.reports.report",
]


def start_server() -> None:
    """Before any test: there is one such server to a process, and who starts it decides what it has imported."""
    _CONTEXT.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


@dataclass(frozen=True)
class Finished:
    """How a launcher ended."""

    returncode: int | None
    stdout: str
    stderr: str


class Launched:
    """A launcher, or a script of the project named by its path, at work in one or more processes.

    {rank} in an argument becomes the process's own.
    """

    def __init__(
        self, folder: Path, name: str, arguments: tuple[str, ...], processes: int, environment: dict[str, str]
    ):
        self._folder = folder
        port = str(free_port())
        self._processes = []
        for rank in range(processes):
            joined = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            variables = {**(joined if processes > 1 else {}), **environment}
            own = tuple(argument.replace("{rank}", str(rank)) for argument in arguments)
            process = _CONTEXT.Process(target=become, args=(name, own, folder, variables, rank))
            process.start()
            self._processes.append(process)

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def give_way(self) -> None:
        """Let the test that watches it run first, so that it does not end before the test has seen it begin."""
        for process in self._processes:
            if process.pid is not None and process.is_alive():
                os.setpriority(os.PRIO_PROCESS, process.pid, _LOW_PRIORITY)

    def kill(self) -> None:
        """SIGKILL, as a power cut or the kernel would."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def finish(self) -> Finished:
        """Wait for the end; the first process that failed gives the exit code."""
        for process in self._processes:
            process.join(TIMEOUT)
        if self.running:
            self.kill()
            raise TimeoutError(f"still running after {TIMEOUT} s:\n{self._text('stderr')}")
        codes = [process.exitcode for process in self._processes]
        return Finished(next((code for code in codes if code), 0), self._text("stdout"), self._text("stderr"))

    def _text(self, stream: str) -> str:
        return "".join((self._folder / f"{stream}-{rank}").read_text() for rank in range(len(self._processes)))


def compute_in_fp32() -> None:
    """train.precision=auto is fp32 in this process, whatever the CPU: sums then differ in their last bits only."""
    import torch

    known = torch.cpu.get_capabilities()
    mock.patch.object(torch.cpu, "get_capabilities", return_value={**known, "amx_bf16": False}).start()


def become(name: str, arguments: tuple[str, ...], folder: Path, environment: dict[str, str], rank: int = 0) -> None:
    """Run a launcher in this process, which is its own from now on; its output goes to files of the folder."""
    os.chdir(folder)
    os.environ.update(environment)
    compute_in_fp32()
    for stream, descriptor in (("stdout", 1), ("stderr", 2)):
        target = os.open(folder / f"{stream}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, descriptor)
    script = name if name.endswith(".py") else f"launchers/{name}.py"
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")
