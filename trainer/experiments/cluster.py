"""A sweep's stages and trials on the Ray cluster that this process has joined."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from data_pipeline.errors import UserError
from data_pipeline.progress_bar import progress_bar
from trainer.experiments.ray_cluster import RETRIES
from trainer.experiments.resources import Resources
from trainer.experiments.stages import Stage, stage_task
from trainer.experiments.sweep import Sweep, write_trials
from trainer.experiments.trial import TUNE_FOLDER, Status, forget_ending, read_epochs, run_trial, write_ending


def check_fit(resources: Resources, stages: Sequence[Stage]) -> int:
    """Number of trials that the cluster has room for at a time.

    resources: of a trial, or a stage. UserError if it is none, and if no node has room for a stage.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    asked = f"resources_per_trial of {resources.cpu} CPU, {resources.gpu:g} GPU, {resources.workers} workers"
    here = (
        f"has {cores:g} CPU and {gpus:g} GPU on {len(nodes)} node{'s' * (len(nodes) != 1)}: ask for less, or add nodes"
    )
    workers = sum(_room(node, resources.of_worker) for node in nodes)
    if workers < resources.workers:
        raise UserError(f"{asked}: more than the cluster, which {here}")
    if stages and not any(_room(node, {"CPU": resources.cpu, "GPU": resources.gpu}) for node in nodes):
        raise UserError(f"{asked}: a stage is for one node, and more than any of the cluster, which {here}")
    return workers // resources.workers


def _room(node: dict[str, float], share: dict[str, float]) -> int:
    """Number of such shares that a node has."""
    return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in share.items() if amount)


def run_stages(stages: Sequence[Stage], folder: Path, resources: Resources) -> None:
    """Run stages of a folder, each after those that it needs, at the same time if none needs the other.

    stages: those that are to run, in the order of `in_order`.
    UserError with a launcher's own message if it refuses; running stages are interrupted, and resumed next time.
    """
    running: dict[Any, Stage] = {}
    begun: dict[Stage, Any] = {}
    for stage in stages:
        share = stage.share(resources)
        task = ray.remote(num_cpus=share.cpu, num_gpus=share.gpu, max_retries=RETRIES)(stage_task)
        before = [begun[needed] for needed in stage.needs if needed in begun]
        begun[stage] = task.remote(stage, str(folder), resources, os.getcwd(), *before)
        running[begun[stage]] = stage
    with progress_bar(len(stages), "stages", "stage") as bar:
        for number in range(1, len(stages) + 1):
            (ended,), _ = ray.wait(list(running))
            try:
                ray.get(ended)
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from error
                raise
            bar.update()
            bar.write(f"{running.pop(ended).name}: done ({number} of {len(stages)} stages)")
            sys.stdout.flush()


def run_trials(sweep: Sweep, room: int) -> None:
    """Run the trials that have not ended, at most `room` at a time.

    Tune starts anew with each launch: restored, its scheduler would be as before the first trial. So the trials that
    have ended report their epochs again if there is a scheduler.
    """
    resources, config = sweep.config.resources_per_trial, sweep.config
    to_run = [trial.name for trial in sweep.to_run]
    if not to_run:
        return
    for trial in sweep.to_run:
        forget_ending(trial.run)
    known = [trial.name for trial in sweep.trials if trial.name not in to_run]
    scheduler = _scheduler(sweep)
    limit = min(room, config.max_concurrent_trials or room)
    by_name = {trial.name: trial for trial in sweep.trials}
    # Processes of Ray Train take a trial's share themselves; the function that waits for them takes no core, or it
    # could take the last one that another trial's processes wait for.
    place: dict[str, float] = {"memory": 1} if resources.workers > 1 else resources.of_worker
    given = {"trials": by_name, "resources": resources, "directory": os.getcwd()}
    trainable = tune.with_resources(tune.with_parameters(run_trial, **given), place)
    shutil.rmtree(sweep.folder / TUNE_FOLDER, ignore_errors=True)
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([*(known if scheduler else ()), *to_run])},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            scheduler=scheduler,
            max_concurrent_trials=limit,
            # An actor's launch server then serves one trial after the other; a training in the actor itself cannot.
            reuse_actors=resources.forks,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name=config.kind,
            storage_path=str(sweep.folder / TUNE_FOLDER),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[_Endings(sweep, to_run)],
            verbose=0,
        ),
    )
    tuner.fit()


def _name_of(trial: Trial) -> str:
    return str(trial.config["trial"])


def _scheduler(sweep: Sweep) -> TrialScheduler | None:
    if sweep.config.scheduler == "none":
        return None
    longest = max(trial.config.train.epochs for trial in sweep.trials)
    return ASHAScheduler(
        time_attr="epoch",
        max_t=longest,
        grace_period=min(sweep.config.grace_epochs, longest),
        reduction_factor=sweep.config.reduction,
    )


class _Endings(tune.Callback):
    """Records how each trial ended."""

    def __init__(self, sweep: Sweep, to_run: Sequence[str]) -> None:
        self._sweep, self._to_run = sweep, to_run

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial, "stopped")  # by the scheduler, unless the trial has recorded that it finished

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        print(f"{_name_of(trial)}: interrupted ({trial.error_file}), is started again", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
        self._ended(trial, "failed", f"{lines[-1] if lines else 'its process died'} (traceback: {trial.error_file})")

    def _ended(self, trial: Trial, status: Status, line: str | None = None) -> None:
        if _name_of(trial) not in self._to_run:
            return
        planned = next(planned for planned in self._sweep.trials if planned.name == _name_of(trial))
        ending = write_ending(planned.run, status, line)
        write_trials(self._sweep)
        epochs = read_epochs(planned.run)
        metric = self._sweep.metric or ""
        known = epochs[-1].get(metric) if epochs else None
        score = f", {metric.replace('_', ' ')} {known:.3f}" if known is not None else ""
        print(f"{planned.name}: {ending.line or ending.status}, {ending.epochs} epochs{score}", flush=True)
