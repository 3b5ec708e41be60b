"""Launchers forked from a process that has imported what they import: importing takes longer than a small stage.

A forked launcher is a process of its own, with the environment, the working folder and the exit code of its command
line. For launches that compute on no GPU: CUDA cannot be used in a forked process once its driver is loaded.
"""

from __future__ import annotations

import atexit
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

# A launcher -> the module that imports what it needs. One that is not here imports it all itself, at each launch.
IMPORTED = {
    "balance": "data_pipeline.banks.balance",
    "build_shards": "data_pipeline.ingest.build",
    "evaluate": "trainer.tasks.scoring",
    "normalize_stains": "trainer.tasks.stain.normalization",
    "synthesize": "trainer.tasks.generation.synthesis",
    "train_classifier": "trainer.tasks.classification.task",
    "train_conditional_gan": "trainer.tasks.conditional.task",
    "train_few_shot_gan": "trainer.tasks.few_shot.task",
    "train_stain_gan": "trainer.tasks.stain.task",
}
# prctl(2): the signal that a process gets when the one that started it has died.
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_LONGEST_MESSAGE = 1 << 20


def end_with_parent() -> None:
    """This process gets SIGTERM when the thread that started it has ended."""
    # Not SIGKILL: torchrun has processes of its own to end.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class LaunchServer:
    """The process that launchers are forked from, one at a time. It ends with the thread that started it.

    Libraries read their number of threads when they are imported, so one server is for one environment.
    """

    def __init__(self, environment: Mapping[str, str], output: int) -> None:
        """output: file descriptor for what is printed on import."""
        self.start = (dict(environment), os.getcwd())
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
        return self._process.poll() is None

    def run(self, command: Sequence[str], output: int, lock: int) -> int:
        """Run a launcher to its end: its exit code, negative for the signal that ended it.

        command: the launcher's path, then its arguments. output: file descriptor of its stdout and stderr. lock: one
        that it holds open for as long as it runs.
        """
        try:
            socket.send_fds(self._channel, [json.dumps(list(command)).encode()], [output, lock])
            answer = self._channel.recv(_LONGEST_MESSAGE)
        except ConnectionError:
            answer = b""
        except BaseException:  # this launch is cut off, by Ctrl-C say
            self.close()
            raise
        # Without an answer the server itself has died, and the launcher with it.
        return int(answer) if answer else self._process.wait()

    def close(self) -> None:
        """End the server and the launcher that it runs, and wait for both."""
        self._process.terminate()
        while self._channel.recv(_LONGEST_MESSAGE):  # empty when neither holds the other end any more
            pass
        self._process.wait()
        self._channel.close()


_of_thread = threading.local()
os.register_at_fork(after_in_child=_of_thread.__dict__.clear)


def run_forked(command: Sequence[str], environment: Mapping[str, str], output: int, lock: int) -> int:
    """`LaunchServer.run` on this thread's server, which is started where there is none for this environment."""
    server: LaunchServer | None = getattr(_of_thread, "server", None)
    if server is None or not server.alive or server.start != (environment, os.getcwd()):
        if server is not None:
            server.close()
        server = _of_thread.server = LaunchServer(environment, output)
    return server.run(command, output, lock)


def _serve(channel: socket.socket) -> list[str]:
    """Fork for every launch that is asked for. Returns in the forked processes only: the launcher's command."""
    importlib.import_module("hydra")  # every launcher reads its arguments by it
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, _LONGEST_MESSAGE, 2)
        if not message:  # who asked has ended
            sys.exit()
        command: list[str] = json.loads(message)
        if (name := Path(command[0]).stem) in IMPORTED:
            importlib.import_module(IMPORTED[name])
        sys.stdout.flush()
        server = os.getpid()
        launched = os.fork()
        if launched == 0:
            _become_launched(server, descriptors[0])
            return command
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(launched, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become_launched(server: int, output: int) -> None:
    end_with_parent()
    if os.getppid() != server:  # it died before it could be followed
        os.kill(os.getpid(), signal.SIGTERM)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)


def _run_and_exit(script: str, arguments: Sequence[str]) -> NoReturn:
    """Run a script as `python SCRIPT ARGUMENTS` does, but leave what was imported to the kernel.

    Tearing it down object by object would copy the memory that the fork shares, for two seconds.
    """
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    code: int | str | None = 1
    try:
        runpy.run_path(script, run_name="__main__")
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
    # The channel stays open in a launcher, so that whoever closes the server can wait for its end.
    launched_script, *launched_arguments = _serve(socket.socket(fileno=int(sys.argv[1])))
    _run_and_exit(launched_script, launched_arguments)
