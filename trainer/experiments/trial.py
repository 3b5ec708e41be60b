"""One trial of a sweep: a whole training, in processes that Ray has placed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from data_pipeline.disk import create_through, file_lock
from data_pipeline.errors import UserError
from trainer.experiments.launch_server import launch_server
from trainer.experiments.resources import Resources
from trainer.experiments.stages import LAUNCHERS
from trainer.loop.log import logged_seconds, read_records
from trainer.runs import registry
from trainer.runs.config import RunConfig
from trainer.runs.run_directory import CONFIG_FILE, read_run_config

# In a sweep's folder, what Ray writes.
TUNE_FOLDER = "tune"
Status = Literal["finished", "stopped", "failed"]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PlannedTrial:
    """A training to be done."""

    name: str  # of its folder
    arm: str
    title: str  # of the arm, for people
    generator_seed: int | None  # of the generators of its images; None: no generator made any
    seed: int
    parameters: Mapping[str, Any]  # those that a search varies, or the model of a comparison
    overrides: tuple[str, ...]  # arguments of the launcher, without shards and run
    config: RunConfig  # the whole configuration; its run is the trial's folder
    content_hash: str  # SHA-256 hex of all that decides the result

    @property
    def run(self) -> Path:
        """The trial's run directory."""
        return Path(str(self.config.run))

    def command(self, resources: Resources, run: Path) -> str:
        """A shell line that does the same training in another run directory."""
        arguments = [f"shards={self.config.shards}", f"run={run}", *self.overrides]
        return resources.shell_line(resources.command(LAUNCHERS / registry.task(self.config.kind).launcher, arguments))


@dataclass(frozen=True)
class Ending:
    """How a trial ended: the record beside its run directory."""

    status: Status
    seconds: float  # of training, also those before an interruption
    epochs: int
    dataset_hash: str | None
    line: str | None = None  # what went wrong
    mistake: bool = False  # what went wrong is a user's mistake


def _ending_file(run: Path) -> Path:
    return run.with_name(f"{run.name}.ended.json")


def read_ending(run: Path) -> Ending | None:
    """How the trial of this run directory ended; None if it has not."""
    path = _ending_file(run)
    return Ending(**json.loads(path.read_text())) if path.exists() else None


def write_ending(run: Path, status: Status, line: str | None = None, *, mistake: bool = False) -> Ending:
    """Record that a trial ended; an earlier record is kept. Returns the one that is kept.

    The trial and the driver may write at the same time, on machines that see the folder late.
    """
    path, begun = _ending_file(run), (run / CONFIG_FILE).exists()
    content = read_run_config(run) if begun else {}
    seconds = sum(map(logged_seconds, registry.task(content["kind"]).logs(run))) if begun else 0.0
    ending = Ending(status, seconds, len(read_epochs(run)), content.get("dataset_hash"), line, mistake)
    run.parent.mkdir(parents=True, exist_ok=True)
    if not create_through(path, json.dumps(vars(ending)).encode()):
        ending = Ending(**json.loads(path.read_text()))
    return ending


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """The epoch records of a run."""
    return read_records(run, "epoch")


def forget_ending(run: Path) -> None:
    """Let a trial run again, from its newest checkpoint."""
    _ending_file(run).unlink(missing_ok=True)


def run_trial(choice: dict[str, str], trials: Mapping[str, PlannedTrial], resources: Resources, directory: str) -> None:
    """Ray Tune's function: train the trial that `choice` names, from its newest checkpoint.

    directory: what relative paths in its arguments start from; Ray gives its processes folders of their own.
    Tune receives every epoch, those of an earlier attempt too, because its scheduler starts anew with each launch. Of
    an interrupted trial the newest epoch is left out: it may be the last, which is reported when the run is scored.
    A UserError ends the trial and is recorded; any other error is raised, and Tune tries again.
    """
    from ray import tune  # here: planning a trial need not wait for Ray

    os.chdir(directory)
    trial = trials[choice["trial"]]
    ended = read_ending(trial.run) is not None
    epochs = read_epochs(trial.run)
    for record in epochs if ended else epochs[:-1]:
        tune.report(_scores(record))
    if ended:
        return
    try:
        if resources.workers > 1:
            _train_on_workers(trial, resources, directory)
        elif resources.forks:
            train_forked(trial, resources, tune.report)
        else:
            train_here(trial, resources, tune.report)
    except UserError as error:
        write_ending(trial.run, "failed", str(error), mistake=True)


def train_forked(trial: PlannedTrial, resources: Resources, report: Report) -> None:
    """`train_here` in a process that this process's launch server forks; it ends when `report` raises.

    UserError as there; RuntimeError with its traceback for any other error, and for a process that died.
    """
    with launch_server({**os.environ, **resources.environment}, 1) as server:
        ours, theirs = Pipe()
        with theirs:
            server.launch(["trainer.experiments.trial_process"], {}, 1, theirs.fileno())
        code, last = None, None
        try:
            with ours:  # closed while the process waits for an answer, it ends there
                for last in _messages(ours, (trial, resources)):
                    if isinstance(last, dict):
                        report(last)
        finally:
            code = server.wait()
    if isinstance(last, Exception):
        raise last
    if code != 0:
        raise RuntimeError(f"the process of {trial.name} ended with code {code}")


def _messages(channel: Connection, first: object) -> Iterator[dict[str, Any] | Exception]:
    """What a trial's process sends after it received `first`: scores of an epoch, at last an exception.

    Each message is answered when the next is asked for.
    """
    answer = first
    with suppress(EOFError, ConnectionError):
        while True:
            channel.send(answer)
            yield channel.recv()
            answer = None


def _train_on_workers(trial: PlannedTrial, resources: Resources, directory: str) -> None:
    """Train in processes of Ray Train, on one node or several."""
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def train_worker() -> None:
        os.chdir(directory)
        train_here(trial, resources, train.report)

    trainer = TorchTrainer(
        train_worker,
        scaling_config=train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpu > 0,
            resources_per_worker={name: share for name, share in resources.of_worker.items() if share},
        ),
        run_config=train.RunConfig(
            name=f"{trial.name}.train",
            storage_path=str(trial.run.parents[1] / TUNE_FOLDER),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Ray's stubs are of the older Train
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        for cause in error.worker_failures.values():
            if isinstance(cause, UserError):
                raise cause from error
        raise


def train_here(trial: PlannedTrial, resources: Resources, report: Report) -> None:
    """Train in this process, one of the trial's; `report` is called after each epoch on every rank.

    The last epoch is reported after the run is scored and the ending written, because a scheduler may end the trial
    at once.
    """
    # As in a launcher that a stage starts; and Ray hides no GPU from a process that asks for none.
    os.environ.update(resources.environment)
    # After that: libraries read the environment when they are imported.
    from torch import distributed

    from trainer.learners.topology import join_processes
    from trainer.runs.training import train

    topology = join_processes()
    first = topology.rank == 0

    def after_epoch(last: bool) -> None:
        if not last:
            report(_scores(read_epochs(trial.run)[-1]) if first else {})

    trial.run.parent.mkdir(parents=True, exist_ok=True)
    # The process of an earlier attempt, whose node or driver died, may still run.
    with file_lock(trial.run.with_name(f"{trial.run.name}.lock")) if first else nullcontext():
        if distributed.is_initialized():
            distributed.barrier()
        train(trial.config, topology, after_epoch)
        if first:
            write_ending(trial.run, "finished")
    for record in read_epochs(trial.run)[-1:]:
        report(_scores(record) if first else {})


def _scores(record: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's record for Tune: its scores, and the epoch counted from 1."""
    measured = {name: value for name, value in record.items() if name.startswith(("train_", "validation_"))}
    return {**measured, "epoch": record["epoch"] + 1}
