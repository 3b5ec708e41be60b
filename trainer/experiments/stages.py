"""The work of one launcher as a stage: known by a hash of inputs and settings, run once, resumed if interrupted.

In a folder of stages, a stage NAME-HASH writes NAME-HASH/, its launcher's output to NAME-HASH.log, and
NAME-HASH.done.json after the launcher has ended without error. NAME-HASH.lock is held by the process that runs it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from data_pipeline.catalog import Dataset
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Root, Store
from trainer.experiments.launch_server import end_with_parent, launch_server
from trainer.experiments.resources import Resources
from trainer.runs.arguments import written
from trainer.runs.config import fingerprint
from trainer.runs.refusal import REFUSAL_FILE, take_refusal

LAUNCHERS = Path(__file__).resolve().parents[2] / "launchers"

_SHOWN_LINES = 20
# A launcher's argument -> what it reads: a data set's place, another stage's output, or several of these.
Source: TypeAlias = "Stage | Root | tuple[Stage, ...]"
Inputs: TypeAlias = Mapping[str, Source]


@dataclass(frozen=True, eq=False)
class Stage:
    """One launcher's work. Stages of one content hash are equal, and must have one name."""

    name: str  # in reports and folder names
    launcher: str  # without .py
    arguments: tuple[str, ...]  # key=value, without inputs and output
    inputs: Inputs
    output: str | None  # argument that names what it writes; None if it adds to what it reads, as scoring does
    settings: Any  # the launcher's whole configuration
    one_process: bool = False  # the launcher is one process, whatever the resources

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 hex of what decides its result, known before it runs.

        Folders, free settings and the spelling of arguments do not count.
        UserError if an input's folder is no data set.
        """
        read = {name: [content_hash_of(each) for each in _listed(source)] for name, source in self.inputs.items()}
        facts = [self.launcher, fingerprint(self.settings, {}, "adaptation"), self.output, read]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def needs(self) -> tuple[Stage, ...]:
        """The stages whose output it reads."""
        return tuple(each for source in self.inputs.values() for each in _listed(source) if isinstance(each, Stage))

    def folder(self, root: Path) -> Path:
        """The stage's output, in the folder of all stages `root`.

        A stage that adds to its input (`output` None) writes no such folder; its log has this name.
        """
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return root / f"{slug}-{self.content_hash[:12]}"

    def command(self, root: Path, resources: Resources) -> list[str]:
        """The launcher's command line."""
        inputs = (f"{name}={_written(source, root)}" for name, source in self.inputs.items())
        output = () if self.output is None else (f"{self.output}={os.path.abspath(self.folder(root))}",)
        arguments = [*inputs, *output, *self.arguments]
        return self.share(resources).command(LAUNCHERS / f"{self.launcher}.py", arguments)

    def share(self, resources: Resources) -> Resources:
        """Resources that it uses: all of a stage's, or those of one worker if its launcher runs as one process."""
        if not self.one_process or resources.workers == 1:
            return resources
        return Resources(resources.threads, resources.gpu / resources.workers, 1)

    def done(self, root: Path) -> bool:
        """Whether its launcher ended without error and its output is still there."""
        marker = _beside(self.folder(root), "done.json")
        if not marker.is_file():
            return False
        if self.output is not None:
            return self.folder(root).exists()
        # The output that it added to may have been made again since, without the addition.
        made = [_beside(each.folder(root), "done.json") for each in self.needs if each.done(root)]
        newest = max((each.stat().st_mtime_ns for each in made), default=0)
        return len(made) == len(self.needs) and newest <= marker.stat().st_mtime_ns


def in_order(stages: Iterable[Stage], done_in: Path | None = None) -> list[Stage]:
    """These stages and all that they need, each once, each after those that it needs.

    done_in: a folder of stages; without those that are done there and what only they need.
    """
    ordered: dict[Stage, str] = {}

    def add(stage: Stage) -> None:
        if stage not in ordered:
            if done_in is not None and stage.done(done_in):
                return
            for needed in stage.needs:
                add(needed)
        if ordered.setdefault(stage, stage.name) != stage.name:
            raise ValueError(f"{stage.name!r} and {ordered[stage]!r} are one stage under two names: name them alike")

    for stage in stages:
        add(stage)
    return list(ordered)


def describe(stages: Iterable[Stage], root: Path, resources: Resources) -> list[str]:
    """Lines to print: each stage that these need, in order, whether it is done, and its command line."""
    lines = []
    for number, stage in enumerate(in_order(stages), start=1):
        state = "done" if stage.done(root) else "to run"
        lines += [f"{number}. {stage.name} ({state})", f"   {resources.shell_line(stage.command(root, resources))}"]
    return lines


def run_stage(stage: Stage, root: Path, resources: Resources) -> Path:
    """Run a stage, whose inputs are done, unless it is done already; returns its folder.

    Of several callers at once, in any process, one runs it and the others wait. An interrupted stage is resumed. Its
    launcher ends when this process is killed.
    Raises UserError with the launcher's own message if it refuses, RuntimeError with the end of the log if it fails
    otherwise, ValueError while an input is not done.
    """
    folder = stage.folder(root)
    if stage.done(root):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with _held(_beside(folder, "lock")) as lock:
        if stage.done(root):  # by the process that held the lock before
            return folder
        for needed in stage.needs:
            if not needed.done(root):
                raise ValueError(f"{stage.name} reads what {needed.name} writes, which is not done: run that first")
        resources = stage.share(resources)
        command, log, refusal = stage.command(root, resources), _beside(folder, "log"), _beside(folder, "refusal.json")
        refusal.unlink(missing_ok=True)
        line = resources.shell_line(command)
        code = _launch(command, resources, line, log, refusal, lock)
        refused = take_refusal(refusal)
        if refused is not None:
            raise UserError(f"{stage.name}: {stage.launcher}.py: {' '.join(refused.split())} ({log})")
        if code != 0:
            tail = "\n".join(log.read_text(errors="replace").replace("\r", "\n").splitlines()[-_SHOWN_LINES:])
            raise RuntimeError(f"{stage.name}: {stage.launcher}.py ended with code {code}; {log} ends with\n{tail}")
        marker = {"name": stage.name, "content_hash": stage.content_hash, "command": line}
        replace_through(_beside(folder, "done.json"), json.dumps(marker, indent=1).encode())
    return folder


def stage_task(stage: Stage, folder: str, resources: Resources, directory: str, *before: None) -> None:
    """`run_stage` as a task of Ray, whose processes import this module alone: neither torch nor Ray.

    directory: what relative paths in its arguments start from. before: tasks that Ray waits for.
    """
    os.chdir(directory)
    run_stage(stage, Path(folder), resources)


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """The lock's file descriptor, once no other process holds it. A process that dies releases it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _launch(command: Sequence[str], resources: Resources, line: str, log: Path, refusal: Path, lock: int) -> int:
    """Run a command to its end and append its output to the log, after its line; returns its exit code.

    It holds the lock too: if this process is killed, nobody else starts before the command has ended as well.
    """
    environment, extra = {**os.environ, **resources.environment}, {REFUSAL_FILE: os.path.abspath(refusal)}
    with log.open("ab") as output:
        # An interrupted launch leaves a progress bar without an end of line.
        output.write(("\n" * (output.tell() > 0) + f"$ {line}\n").encode())
        output.flush()
        if not resources.forks:
            return _run_anew(command, {**environment, **extra}, output.fileno(), lock)
        with launch_server(environment, output.fileno()) as server:
            server.launch(command[1:], extra, output.fileno(), lock)
            return server.wait()


def _run_anew(command: Sequence[str], environment: Mapping[str, str], output: int, lock: int) -> int:
    """Run a command that imports everything itself; returns its exit code."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[lock],
        preexec_fn=end_with_parent,
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


def _listed(source: Source) -> tuple[Stage | Root, ...]:
    return source if isinstance(source, tuple) else (source,)


def content_hash_of(source: Stage | Root) -> str:
    """The hash of a stage, or of the catalogue of a data set."""
    return source.content_hash if isinstance(source, Stage) else Dataset.read_catalog(source).content_hash


def _written(source: Source, root: Path) -> str:
    """A source as the value of an argument."""
    places = [each.folder(root) if isinstance(each, Stage) else each for each in _listed(source)]
    folders = [str(place) if isinstance(place, Store) else os.path.abspath(place) for place in places]
    if not isinstance(source, tuple):
        return folders[0]
    return written(folders)
