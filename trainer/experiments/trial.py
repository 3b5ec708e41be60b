"""One trial of a sweep: a whole training of a classifier, in processes that Ray has placed."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.disk import TEMPORARY_PREFIX, write_through
from data_pipeline.errors import UserError
from trainer.experiments.resources import Resources
from trainer.experiments.stages import LAUNCHERS
from trainer.loop.log import read_records
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.tasks.classification.config import ClassifierRunConfig

# In a sweep's folder, what Ray writes.
TUNE_FOLDER = "tune"
Status = Literal["finished", "stopped", "failed"]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PlannedTrial:
    """A training to be done.

    name: of its folder. arm, title, seed, parameters: what it is an instance of. overrides: arguments of
    train_classifier.py, without shards and run. config: what these come to; its run is the trial's folder.
    content_hash: SHA-256 hex of all that its result follows from.
    """

    name: str
    arm: str
    title: str
    seed: int
    parameters: Mapping[str, Any]
    overrides: tuple[str, ...]
    config: ClassifierRunConfig
    content_hash: str

    @property
    def run(self) -> Path:
        return Path(str(self.config.run))

    def command(self, resources: Resources, run: Path) -> str:
        """A line for a shell that does the same training in another run directory."""
        arguments = [f"shards={self.config.shards}", f"run={run}", *self.overrides]
        return resources.shell_line(resources.command(LAUNCHERS / "train_classifier.py", arguments))


@dataclass(frozen=True)
class Ending:
    """How a trial ended: written beside its run directory when it has. line: of what went wrong, for people.

    mistake: what went wrong is the user's to mend.
    """

    status: Status
    seconds: float
    epochs: int
    dataset_hash: str | None
    line: str | None = None
    mistake: bool = False


def _ending_file(run: Path) -> Path:
    return run.with_name(f"{run.name}.ended.json")


def read_ending(run: Path) -> Ending | None:
    """How the trial of this run directory ended; None where it has not."""
    path = _ending_file(run)
    return Ending(**json.loads(path.read_text())) if path.exists() else None


def write_ending(run: Path, status: Status, line: str | None = None, *, mistake: bool = False) -> Ending:
    """Set down that a trial ended, unless that has been set down: the ending that stands there.

    Whoever runs a trial and whoever waits for it may come to it at once, on machines that see the folder late.
    seconds are those that all its epochs took, however often it was cut off.
    """
    path, epochs = _ending_file(run), read_epochs(run)
    dataset_hash = read_run_config(run)["dataset_hash"] if (run / CONFIG_FILE).exists() else None
    seconds = sum(record["seconds"] for record in epochs)
    ending = Ending(status, seconds, len(epochs), dataset_hash, line, mistake)
    run.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{socket.gethostname()}-{os.getpid()}")
    write_through(written, json.dumps(vars(ending)).encode())
    try:
        os.link(written, path)  # unlike a rename, refused where the name is taken
    except FileExistsError:
        ending = Ending(**json.loads(path.read_text()))
    finally:
        written.unlink()
    return ending


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """The records of a run's epochs."""
    return [record for record in read_records(run) if record["kind"] == "epoch"]


def forget_ending(run: Path) -> None:
    """Let a trial be done again, from where its run directory stands."""
    _ending_file(run).unlink(missing_ok=True)


def run_trial(choice: dict[str, str], trials: Mapping[str, PlannedTrial], resources: Resources, directory: str) -> None:
    """Ray Tune's function: train the trial that `choice` names from where its run directory stands.

    directory: that relative paths in its arguments are from, which is not where Ray puts its processes.
    Tune is told of every epoch, those of an earlier attempt too, for its scheduler begins anew with each launch. Of a
    trial that was cut off the newest is left out: it may have been the last, which is told when all is done. A user's
    mistake ends the trial, written down; any other error is raised, for Tune to try again.
    """
    from ray import tune  # here: who plans a trial need not wait for Ray

    os.chdir(directory)
    trial = trials[choice["trial"]]
    ended = read_ending(trial.run) is not None
    epochs = read_epochs(trial.run)
    for record in epochs if ended else epochs[:-1]:
        tune.report(_told(record))
    if ended:
        return
    try:
        if resources.workers == 1:
            train_here(trial, resources, tune.report)
        else:
            _train_on_workers(trial, resources, directory)
    except UserError as error:
        write_ending(trial.run, "failed", str(error), mistake=True)


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
    """Train in this process, one of the trial's; `report` is called after each epoch in all of them.

    The last epoch is told when the run is scored and the ending written: a scheduler ends a trial as it likes when
    it is told.
    """
    # As a launcher that a stage starts has it; and Ray hides no GPU from a process that has asked for none.
    os.environ.update(resources.environment)
    # After that, for libraries read the environment when they are loaded; who plans a trial does not wait for torch.
    from torch import distributed

    from trainer.learners.topology import join_processes
    from trainer.runs.training import train

    topology = join_processes()
    first = topology.rank == 0

    def after_epoch(last: bool) -> None:
        if not last:
            report(_told(read_epochs(trial.run)[-1]) if first else {})

    trial.run.parent.mkdir(parents=True, exist_ok=True)
    with trial.run.with_name(f"{trial.run.name}.lock").open("w") as lock:
        if first:
            # An attempt before this one, whose node or driver died, may not be quite dead.
            fcntl.flock(lock, fcntl.LOCK_EX)
        if distributed.is_initialized():
            distributed.barrier()
        train(trial.config, topology, after_epoch)
        if first:
            write_ending(trial.run, "finished")
    report(_told(read_epochs(trial.run)[-1]) if first else {})


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's record as Tune is told it: its scores, and the epoch counted from 1."""
    scores = {name: value for name, value in record.items() if name.startswith(("train_", "validation_"))}
    return {**scores, "epoch": record["epoch"] + 1}
