"""Launches forked from a process that has already imported what they need: importing takes longer than a small stage.

A forked launch is a process of its own, with the environment, working folder and exit code of its command line. CPU
launches only: CUDA cannot be used in a forked process once its driver is loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_TRAINING = "trainer.runs.training"
# Script, without .py, or module -> the modules that import what it needs. Any other imports everything itself.
IMPORTED: dict[str, tuple[str, ...]] = {
    "balance": ("data_pipeline.banks.balance",),
    "build_shards": ("data_pipeline.ingest.build",),
    "evaluate": tuple(f"trainer.tasks.{room}.scoring" for room in ("classification.evaluation", "stain", "generation")),
    "normalize_stains": ("trainer.tasks.stain.normalization",),
    "synthesize": (
        "trainer.tasks.generation.synthesis",
        "trainer.tasks.conditional.task",
        "trainer.tasks.few_shot.task",
    ),
    "train_classifier": (_TRAINING, "trainer.tasks.classification.task"),
    "train_conditional_gan": (_TRAINING, "trainer.tasks.conditional.task"),
    "train_few_shot_gan": (_TRAINING, "trainer.tasks.few_shot.task"),
    "train_stain_gan": (_TRAINING, "trainer.tasks.stain.task"),
    "trainer.experiments.trial_process": (_TRAINING, "trainer.tasks.classification.task"),
}
# prctl(2): the signal that a process gets when the thread that started it has ended.
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_LONGEST_MESSAGE = 1 << 20


def end_with_parent() -> None:
    """Have this process receive SIGTERM when the thread that started it ends."""
    # Not SIGKILL: torchrun has processes of its own to end.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class LaunchServer:
    """The process that launches are forked from, one at a time. It ends with the thread that started it.

    One server serves one environment: libraries read their number of threads when they are imported.
    """

    def __init__(self, environment: Mapping[str, str], output: int) -> None:
        """output: file descriptor for what is printed on import."""
        self.start = (dict(environment), os.getcwd())
        self.idle = True
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -P: no file of the working folder takes the place of a module.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                preexec_fn=end_with_parent,
            )

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._process.poll() is None

    def launch(self, command: Sequence[str], extra: Mapping[str, str], output: int, kept_open: int) -> None:
        """Start a script or a module; `wait` for its end before the next launch.

        command: the script's path or the module's name, then its arguments. extra: more environment variables.
        output: file descriptor of its stdout and stderr. kept_open: a file descriptor that it holds open while it
        runs; its number there is in the environment variable LAUNCH_DESCRIPTOR.
        """
        self.idle = False
        message = json.dumps([list(command), dict(extra)]).encode()
        with contextlib.suppress(ConnectionError):  # the server died; `wait` has its exit code
            socket.send_fds(self._channel, [message], [output, kept_open])

    def wait(self) -> int:
        """The exit code of what was launched, negative for the signal that ended it, or that ended the server."""
        try:
            answer = self._channel.recv(_LONGEST_MESSAGE)
        except ConnectionError:
            answer = b""
        self.idle = True
        return int(answer) if answer else self._process.wait()

    def close(self) -> None:
        """End the server and what it runs, and wait for both."""
        self._process.terminate()
        while self._channel.recv(_LONGEST_MESSAGE):  # empty when neither holds the other end any more
            pass
        self._process.wait()
        self._channel.close()


_idle: list[LaunchServer] = []
# Its thread lives as long as this process, which so does each server: a trial's own thread ends with the trial.
_starter = ThreadPoolExecutor(max_workers=1)


def _forget_parent() -> None:
    """In a forked process: the parent's servers are not this process's, and its starter thread is not here."""
    global _starter
    _idle.clear()
    _starter = ThreadPoolExecutor(max_workers=1)


os.register_at_fork(after_in_child=_forget_parent)


@contextmanager
def launch_server(environment: Mapping[str, str], output: int) -> Iterator[LaunchServer]:
    """A server for this environment and working folder: an idle one of this process, else a new one.

    It is kept for the next launch, unless it is left while a launch runs (Ctrl-C, say): then both are ended.
    """
    start = (dict(environment), os.getcwd())
    while _idle:
        server = _idle.pop()
        if server.alive and server.start == start:
            break
        server.close()
    else:
        server = _starter.submit(LaunchServer, environment, output).result()
    try:
        yield server
    finally:
        if server.idle:
            _idle.append(server)
        else:
            server.close()


def _serve(channel: socket.socket) -> list[str]:
    """Fork for every launch that is asked for. Returns in the forked processes only: the script's command."""
    importlib.import_module("hydra")  # every launcher reads its arguments by it
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, _LONGEST_MESSAGE, 2)
        if not message:  # the process that asks has ended
            sys.exit()
        command: list[str]
        command, extra = json.loads(message)
        for module in IMPORTED.get(Path(command[0]).name.removesuffix(".py"), ()):
            importlib.import_module(module)
        sys.stdout.flush()
        server = os.getpid()
        launched = os.fork()
        if launched == 0:
            _become_launched(server, *descriptors)
            os.environ.update(extra)
            return command
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(launched, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become_launched(server: int, output: int, kept_open: int) -> None:
    end_with_parent()
    if os.getppid() != server:  # it died before it could be followed
        os.kill(os.getpid(), signal.SIGTERM)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.environ["LAUNCH_DESCRIPTOR"] = str(kept_open)


def _run_and_exit(script: str, arguments: Sequence[str]) -> NoReturn:
    """Run as `python SCRIPT ARGUMENTS` or `python -m MODULE ARGUMENTS` does, but leave what was imported to the kernel.

    Tearing it down object by object would copy the memory that the fork shares, for two seconds.
    """
    sys.argv = [script, *arguments]
    code: int | str | None = 1
    try:
        if script.endswith(".py"):
            sys.path.insert(0, str(Path(script).parent))
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as multiprocessing's children do
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    # The channel stays open in what is launched, so that `close` can wait for its end.
    launched_script, *launched_arguments = _serve(socket.socket(fileno=int(sys.argv[1])))
    _run_and_exit(launched_script, launched_arguments)
