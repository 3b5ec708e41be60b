"""The parts of the GPU benchmark, and the process that each of them is."""

import importlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path

import torch

from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.rows import Record
from trainer.experiments.machine import describe_machine

# A part's share of the time. Its module's `measure` fills its record.
MINUTES = {"right": 2.0, "loader": 2.0, "classifier": 2.0, "gans": 1.0, "result": 2.0}


def processes() -> SpawnContext | ForkContext:
    """How processes are started.

    A forked one could not use a GPU that its parent has asked about; a new one takes seconds to import torch.
    """
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("fork")


def measure_part(name: str, options: Options, deadline: float) -> None:
    """Measure what is missing of a part; to be the main function of a process. deadline: of time.monotonic()."""
    os.setsid()
    # As in a program that nobody has spawned: loaders' processes would be spawned too, ten seconds each.
    multiprocessing.set_start_method("fork", force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    console = os.fdopen(os.dup(1), "w")
    log = os.open(Path(options.out) / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)

    def say(line: str) -> None:
        """To the console; what libraries print goes to the log alone."""
        for file in (console, None):
            print(f"{name}: {line}", file=file, flush=True)

    begun = time.monotonic()
    record = Record(Path(options.out) / f"{name}.json", options.measured())
    record.content["machine"] = describe_machine()
    part = importlib.import_module(f"tests.benchmarks.gpu.{name}")
    part.measure(options, record, deadline, say)
    say(f"done in {time.monotonic() - begun:.0f} s")


def _end_with_parent() -> None:
    """Where the command is killed, its part and all that it has started go too: the next start would meet them."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(os.getpid(), signal.SIGKILL)
