"""A sweep from its configuration to its report: planned as a whole, then run by Ray, taken up where it was cut off.

SWEEP/sweep.json says which sweep it is, SWEEP/trials.jsonl which trials have ended. trials/NAME is a trial's run
directory, trials/NAME.ended.json says how it ended. stages/ holds what trials share, tune/ what Ray Tune remembers.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from trainer.orchestration.ablation import Arm, ablation_arms
from trainer.orchestration.results import SWEEP_FILE, TRIALS_FILE, TRIALS_FOLDER, read_sweep
from trainer.orchestration.stages import Stage, describe, in_order
from trainer.orchestration.sweep_config import SweepConfig, parameter_sets
from trainer.orchestration.trial import TUNE_FOLDER, PlannedTrial, forget_ending, read_ending

# A launcher's name and its arguments, to its configuration; UserError for an unknown one.
Compose = Callable[[str, Sequence[str]], Any]
# A sweep's name, where its data lie and how many trials run at a time decide no result.
_NOT_COUNTING = ("name", "shards", "max_concurrent_trials")


@dataclass(frozen=True)
class Sweep:
    """All that a sweep will do, known before any of it is done.

    folder: where it is written. fingerprint: SHA-256 hex of all that its results follow from.
    """

    config: SweepConfig
    folder: Path
    arms: tuple[Arm, ...]
    trials: tuple[PlannedTrial, ...]
    fingerprint: str

    @property
    def stages(self) -> list[Stage]:
        """What the trials share, each stage after those that it needs."""
        return in_order(arm.dataset for arm in self.arms if isinstance(arm.dataset, Stage))

    @property
    def stages_folder(self) -> Path:
        return self.folder / "stages"

    @property
    def reference(self) -> str | None:
        """The arm that the others are compared with."""
        return None if self.config.kind == "search" else self.arms[0].name

    @property
    def to_run(self) -> list[PlannedTrial]:
        """The trials that have not ended, or have failed."""
        endings = [(trial, read_ending(trial.run)) for trial in self.trials]
        return [trial for trial, ending in endings if ending is None or ending.status == "failed"]

    def command(self, trial: PlannedTrial) -> str:
        """A line for a shell that does a trial again, beside the sweep's own."""
        return trial.command(self.config.resources_per_trial, self.folder / "replays" / trial.name)


def plan_sweep(config: SweepConfig, folder: Path, compose: Compose, where: Path) -> Sweep:
    """Plan every stage and trial. UserError, naming the sweep file `where`, for one that cannot be configured."""
    folder, shards = folder.resolve(), Path(str(config.shards)).resolve()
    dataset = Dataset.open(shards)
    told = dataclasses.asdict(config) | dict.fromkeys(_NOT_COUNTING) | {"data set": dataset.content_hash}
    fingerprint = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    variants = _variants(config, shards, where)
    trials = []
    for arm, parameters in variants:
        source = arm.dataset.folder(folder / "stages") if isinstance(arm.dataset, Stage) else arm.dataset
        for seed in config.seeds:
            name = f"{arm.name}-seed{seed}"
            # Without being told, every trial would decode with all the cores of its machine.
            threads = f"data.threads={config.resources_per_trial.threads}"
            overrides = (threads, *config.fixed, *arm.overrides, f"seed={seed}")
            try:
                run = compose(
                    "train_classifier", [f"shards={source}", f"run={folder / TRIALS_FOLDER / name}", *overrides]
                )
            except UserError as error:
                raise UserError(f"{where}: trial {name} ({' '.join(overrides[1:])}): {error}") from error
            trials.append(PlannedTrial(name, arm.name, arm.title, seed, parameters, overrides, run))
    sweep = Sweep(config, folder, tuple(arm for arm, _ in variants), tuple(trials), fingerprint)
    for stage in sweep.stages:
        try:
            compose(stage.launcher, stage.arguments)
        except UserError as error:
            raise UserError(f"{where}: {stage.name} ({stage.launcher}.py): {error}") from error
    return sweep


def _variants(config: SweepConfig, shards: Path, where: Path) -> list[tuple[Arm, Mapping[str, Any]]]:
    """What is trained with every seed, and the parameters that tell one from another."""
    if config.kind == "comparison":
        return [(Arm(model, model, shards, (f"model={model}",)), {"model": model}) for model in config.models]
    if config.kind == "search":
        points = parameter_sets(config)
        digits = len(str(len(points) - 1))
        return [
            (Arm(f"point{number:0{digits}}", ", ".join(arguments), shards, arguments), point)
            for number, point in enumerate(points)
            for arguments in [tuple(f"{name}={_written(value)}" for name, value in point.items())]
        ]
    arms = ablation_arms(config.ablation, shards, config.resources_per_trial.threads)
    names = [arm.name for arm in arms]
    for name in config.arms or ():
        if name not in names:
            raise UserError(f"{where}: arms: no arm {name}; there are {', '.join(names)}")
    return [(arm, {}) for arm in arms if config.arms is None or arm.name in config.arms]


def _written(value: Any) -> str:
    """A value as an argument has it."""
    return value if isinstance(value, str) else json.dumps(value)


def describe_sweep(sweep: Sweep) -> list[str]:
    """Lines for people: every stage and every trial, how it stands, and its command line."""
    resources, config = sweep.config.resources_per_trial, sweep.config
    lines = [
        f"{config.kind} {config.name}: {len(sweep.trials)} trials of {len(sweep.arms)} arms, each on "
        f"{resources.cpu} CPU, {resources.gpu:g} GPU, in {resources.workers} processes",
        *describe(sweep.stages, sweep.stages_folder, resources.workers),
    ]
    for trial in sweep.trials:
        ending = read_ending(trial.run)
        lines += [f"{trial.name} ({ending.status if ending else 'to run'})", f"   {sweep.command(trial)}"]
    return lines


@contextmanager
def opened(sweep: Sweep) -> Iterator[None]:
    """Take the sweep's folder for this process, and have failed trials tried again.

    UserError where another process has it.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with (sweep.folder / "sweep.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{sweep.folder}: another ablate.py is at work there: let it end, or stop it") from error
        content = {
            "name": sweep.config.name,
            "kind": sweep.config.kind,
            "reference": sweep.reference,
            "metric": sweep.config.metric,
            "mode": sweep.config.mode,
            "sweep": dataclasses.asdict(sweep.config),
            "fingerprint": sweep.fingerprint,
        }
        replace_through(sweep.folder / SWEEP_FILE, json.dumps(content, indent=1).encode())
        failed = [trial for trial in sweep.to_run if read_ending(trial.run) is not None]
        if failed:  # to Tune they have ended, so it begins anew: first, lest a kill in between hide them
            shutil.rmtree(sweep.folder / TUNE_FOLDER, ignore_errors=True)
        for trial in failed:
            forget_ending(trial.run)
        write_trials(sweep)
        yield


def refuse_other_sweep(sweep: Sweep) -> None:
    """UserError where the sweep's folder holds another one."""
    path = sweep.folder / SWEEP_FILE
    if not path.exists():
        return
    before = read_sweep(sweep.folder)
    if before["fingerprint"] == sweep.fingerprint:
        return
    now = json.loads(json.dumps(dataclasses.asdict(sweep.config)))
    changed = [key for key in now if key not in _NOT_COUNTING and before["sweep"].get(key) != now[key]]
    told = (
        f"{changed[0]} was {before['sweep'].get(changed[0])}, is now {now[changed[0]]}" if changed else "other images"
    )
    raise UserError(f"{sweep.folder}: holds another sweep, {before['name']} ({told}): give another out=DIR")


def write_trials(sweep: Sweep) -> None:
    """Write trials.jsonl anew, a line for each trial that has ended: so none stands there twice."""
    lines = []
    for trial in sweep.trials:
        ending = read_ending(trial.run)
        if ending is not None:
            line = {
                "trial": trial.name,
                "arm": trial.arm,
                "title": trial.title,
                "seed": trial.seed,
                "parameters": trial.parameters,
                "command": sweep.command(trial),
                "run": f"{TRIALS_FOLDER}/{trial.name}",
                "dataset_hash": ending.dataset_hash,
                "status": ending.status,
                "seconds": ending.seconds,
                "epochs": ending.epochs,
            }
            lines.append(json.dumps(line) + "\n")
    replace_through(sweep.folder / TRIALS_FILE, "".join(lines).encode())


def refuse_failures(sweep: Sweep) -> None:
    """UserError that lists the trials that failed, or were cut off; RuntimeError where it was no user's mistake."""
    endings = {trial.name: read_ending(trial.run) for trial in sweep.trials}
    cut_off = [name for name, ending in endings.items() if ending is None]
    if cut_off:
        raise UserError(f"{sweep.folder}: {', '.join(cut_off)} cut off: the same command goes on")
    failed = {name: ending for name, ending in endings.items() if ending is not None and ending.status == "failed"}
    if failed:
        told = "; ".join(f"{name}: {ending.line}" for name, ending in failed.items())
        kind = UserError if all(ending.mistake for ending in failed.values()) else RuntimeError
        raise kind(f"{len(failed)} of {len(endings)} trials failed, the same command tries them again: {told}")
