"""Launchers and checks as forked processes of one that has imported everything once and has no thread of its own."""

import atexit
import contextlib
import importlib
import os
import pickle
import resource
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.chaos.moments import Changes, Moment
from tests.launching import PRELOADED, TIMEOUT, become

Result = TypeVar("Result")
# Seconds that processes have to end after the first of them.
_GRACE = 10.0


def import_everything() -> None:
    """What launchers import, so that a forked one begins with its work."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray takes it up when it is imported, of this cluster and who joins it
    for name in (*PRELOADED, "launchers.ablate", "trainer.experiments.cluster", "boto3"):
        importlib.import_module(name)


@dataclass(frozen=True)
class Ended:
    """How a launcher ended. code: None where it was killed. changes: that it made to files (see `Changes`)."""

    code: int | None
    seconds: float
    changes: int
    stdout: str
    stderr: str

    @property
    def killed(self) -> bool:
        return self.code is None

    @property
    def line(self) -> str:
        """The last line that it said to the user."""
        return (self.stderr.strip().splitlines() or [""])[-1]


@dataclass(frozen=True)
class Launcher:
    """A launcher's command. folder: of its output's files, and of what it says. watched: whose changes count."""

    name: str
    arguments: Sequence[str]
    folder: Path
    watched: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, moment: Moment | None = None, *, file_size: int | None = None) -> Ended:
        """Run it in a session of its own to its end, or until all of the session is killed at a moment.

        file_size: bytes that no file may grow beyond, in place of a disk that is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        changes, (hears, tells) = Changes(self.watched), os.pipe()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(hears)
            self._work(changes, moment, tells, file_size)
        os.close(tells)
        code = _wait(child, hears, moment, started)
        seconds = time.monotonic() - started
        os.close(hears)
        said = [(self.folder / f"{stream}-0").read_text(errors="replace") for stream in ("stdout", "stderr")]
        return Ended(code, seconds, changes.count, *said)

    def _work(self, changes: Changes, moment: Moment | None, tells: int, file_size: int | None) -> None:
        """In the child: never comes back."""
        code = 1
        try:
            os.setsid()
            os.write(tells, b"s")
            for stream in ("stdout", "stderr"):
                (self.folder / f"{stream}-0").write_text("")
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            tempfile.tempdir = None  # TMPDIR may be another one from now on
            changes.watch(moment, lambda: os.write(tells, b"c") and None)
            become(self.name, tuple(self.arguments), self.folder, dict(self.environment))
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        _leave(code)


def in_child(work: Callable[[], Result]) -> Result:
    """What `work` returns, done in a forked process; what it raises is raised here."""
    hears, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hears)
        try:
            answer: tuple[bool, Any] = (True, work())
        except BaseException as error:
            answer = (False, f"{type(error).__name__}: {error}")
        with open(tells, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        _leave(0)
    os.close(tells)
    with open(hears, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    if not content:
        raise RuntimeError("the process died")
    done, result = pickle.loads(content)
    if not done:
        raise RuntimeError(result)
    return result  # type: ignore[no-any-return]


def _leave(code: int) -> None:
    """End as an interpreter does, but without the clean-up of modules, which the parent's objects need not have."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _wait(child: int, hears: int, moment: Moment | None, started: float) -> int | None:
    """The exit code of a child, None where it was killed; what is left of its session is killed after it."""
    assert os.read(hears, 1) == b"s"
    deadline = started + TIMEOUT
    kill_at = started + moment.seconds if moment is not None and moment.kind == "time" else None
    while True:
        until = deadline if kill_at is None else kill_at
        readable, _, _ = select.select([hears], [], [], max(0.0, min(until - time.monotonic(), 0.02)))
        if readable and os.read(hears, 1) == b"c":
            assert moment is not None
            kill_at = time.monotonic() + moment.seconds
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if kill_at is not None and time.monotonic() >= kill_at:
            os.killpg(child, signal.SIGKILL)
            kill_at = None
            _, status = os.waitpid(child, 0)
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"still running after {TIMEOUT} s")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            return -os.WTERMSIG(status)
        return None
    return os.WEXITSTATUS(status)
