"""A sweep: planned as a whole before anything runs, then run by Ray, and resumed if interrupted.

SWEEP/sweep.json records what the sweep trains, SWEEP/trials.jsonl the trials that ended. trials/NAME is a trial's run
directory, trials/NAME.ended.json how it ended. stages/ holds what trials share, tune/ what Ray Tune writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from data_pipeline.catalog import Dataset
from data_pipeline.disk import file_lock, remove_leftovers, replace_through
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Root, root_of
from trainer.experiments.ablation import Arm, ablation_arms
from trainer.experiments.launches import StagePlanner
from trainer.experiments.resources import Resources
from trainer.experiments.results import SWEEP_FILE, TRIALS_FILE, TRIALS_FOLDER, SweepRecord, Trial, read_plan
from trainer.experiments.stages import Stage, content_hash_of, describe, in_order
from trainer.experiments.sweep_config import SweepConfig, parameter_sets
from trainer.experiments.trial import PlannedTrial, read_ending
from trainer.metrics.records import to_json, write_json
from trainer.runs.arguments import later_wins, written
from trainer.runs.config import fingerprint
from trainer.tasks.classification.config import ClassifierRunConfig

# Settings that add trials to a sweep, or take some away, and leave the others as they are.
_GROWING = ("seeds", "arms", "models", "trials")
# Settings that decide which trials of a search train to the end.
_RULES = ("metric", "mode", "scheduler", "grace_epochs", "reduction")
# Settings that do not affect a trial's result.
_FREE = ("name", "shards", "max_concurrent_trials")


@dataclass(frozen=True)
class Sweep:
    """All that a sweep will do, known before any of it runs."""

    config: SweepConfig
    folder: Path
    stages_folder: Path  # may be shared with other sweeps
    arms: tuple[Arm, ...]
    trials: tuple[PlannedTrial, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that affects the results: kind, trials, and a search's rules for stopping trials."""
        trials = sorted(trial.content_hash for trial in self.trials)
        rules = [getattr(self.config, name) for name in _RULES] if self.config.kind == "search" else []
        return hashlib.sha256(json.dumps([self.config.kind, rules, trials]).encode()).hexdigest()

    @property
    def stages(self) -> list[Stage]:
        """The stages that make the trials' data, each after those that it needs."""
        return in_order(arm.dataset for arm in self.arms if isinstance(arm.dataset, Stage))

    @property
    def stages_to_run(self) -> list[Stage]:
        """The stages that are not done and whose output a trial still needs."""
        waiting = {trial.arm for trial in self.to_run}
        datasets = [arm.dataset for arm in self.arms if arm.name in waiting]
        return in_order((dataset for dataset in datasets if isinstance(dataset, Stage)), self.stages_folder)

    @property
    def reference(self) -> str | None:
        """The arm that the others are compared with."""
        return None if self.config.kind == "search" else self.arms[0].name

    @property
    def to_run(self) -> list[PlannedTrial]:
        """The trials that have not ended, that failed, or whose run directory was removed."""
        endings = [(trial, read_ending(trial.run)) for trial in self.trials]
        return [
            trial for trial, ending in endings if ending is None or ending.status == "failed" or not trial.run.is_dir()
        ]

    def command(self, trial: PlannedTrial) -> str:
        """The shell command that repeats a trial in another run directory."""
        return trial.command(self.config.resources_per_trial, self.folder / "replays" / trial.name)


def plan_sweep(config: SweepConfig, folder: Path, where: Path, stages_folder: Path | None = None) -> Sweep:
    """Plan every stage and trial. stages_folder: None takes one of the sweep's own.

    UserError, naming the sweep file `where`, for what a launcher would refuse and for two trials that are one training.
    """
    folder, shards = folder.resolve(), root_of(str(config.shards))
    stages_folder = folder / "stages" if stages_folder is None else stages_folder.resolve()
    if isinstance(shards, Path):
        shards = shards.resolve()
    resources = config.resources_per_trial
    planner = StagePlanner(where, resources, Dataset.open(shards).in_store)
    variants = _variants(config, shards, planner)
    trials: dict[str, PlannedTrial] = {}
    for arm, parameters in variants:
        source = arm.dataset.folder(stages_folder) if isinstance(arm.dataset, Stage) else arm.dataset
        images = content_hash_of(arm.dataset)
        for seed in config.seeds:
            name = f"{arm.name}-seed{seed}"
            # By default a trial would decode with all cores of its machine.
            overrides = later_wins((f"data.threads={resources.threads}", *config.fixed, *arm.overrides, f"seed={seed}"))
            arguments = [f"shards={source}", f"run={folder / TRIALS_FOLDER / name}", *overrides]
            run = planner.configure(f"trial {name}", "train_classifier", arguments)
            content_hash = _content_hash(run, images, resources)
            trial = PlannedTrial(name, arm.name, arm.title, seed, parameters, overrides, run, content_hash)
            same = trials.setdefault(content_hash, trial)
            if same is not trial:
                raise UserError(f"{where}: trials {same.name} and {name} are one and the same training: leave one out")
    return Sweep(config, folder, stages_folder, tuple(arm for arm, _ in variants), tuple(trials.values()))


def _content_hash(config: ClassifierRunConfig, images: str, resources: Resources) -> str:
    """SHA-256 hex of all that decides a training's result, the order of its sums included.

    A run may be resumed with another patience and micro-batch; from the start they decide where it ends, and the
    images that batch norm averages over.
    """
    facts = {
        "images": images,
        "workers": str(resources.workers),
        "threads": str(resources.threads),
        "device": "gpu" if resources.gpu else "cpu",
        "patience": str(config.train.patience),
        "micro-batch": str(config.train.micro_batch),
    }
    settings = fingerprint(config, facts)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _variants(config: SweepConfig, shards: Root, planner: StagePlanner) -> list[tuple[Arm, Mapping[str, Any]]]:
    """What is trained with every seed, and the parameters that distinguish it."""
    if config.kind == "comparison":
        return [
            (Arm(model, model, shards, (f"model={model}", *config.model_settings.get(model, ()))), {"model": model})
            for model in config.models
        ]
    if config.kind == "search":
        points = parameter_sets(config)
        return [
            (Arm(f"point{number}", ", ".join(arguments), shards, arguments), point)
            for number, point in enumerate(points)
            for arguments in [tuple(f"{name}={written(value)}" for name, value in point.items())]
        ]
    arms = ablation_arms(config.ablation, shards, planner)
    names = [arm.name for arm in arms]
    for name in config.arms or ():
        if name not in names:
            raise UserError(f"{planner.where}: arms: no arm {name}; there are {', '.join(names)}")
    return [(arm, {}) for arm in arms if config.arms is None or arm.name in config.arms]


def describe_sweep(sweep: Sweep) -> list[str]:
    """Lines for people: every stage and trial, its state, and its command line."""
    resources, config = sweep.config.resources_per_trial, sweep.config
    lines = [
        f"{config.kind} {config.name}: {len(sweep.trials)} trials of {len(sweep.arms)} arms, each on "
        f"{resources.cpu} CPU, {resources.gpu:g} GPU, in {resources.workers} processes",
        *describe(sweep.stages, sweep.stages_folder, resources),
    ]
    waiting = [trial.name for trial in sweep.to_run]
    for trial in sweep.trials:
        ending = None if trial.name in waiting else read_ending(trial.run)
        lines += [f"{trial.name} ({ending.status if ending else 'to run'})", f"   {sweep.command(trial)}"]
    return lines


@contextmanager
def opened(sweep: Sweep) -> Iterator[None]:
    """Lock the sweep's folder for this process. UserError if another process has it."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = file_lock(sweep.folder / "sweep.lock", blocking=False).acquire()
    except Timeout as error:
        raise UserError(f"{sweep.folder}: another ablate.py is at work there: let it end, or stop it") from error
    with lock:
        remove_leftovers(sweep.folder / TRIALS_FOLDER)
        record = SweepRecord(
            name=sweep.config.name,
            kind=str(sweep.config.kind),
            reference=sweep.reference,
            metric=sweep.config.metric,
            mode=sweep.config.mode,
            sweep=dataclasses.asdict(sweep.config),
            fingerprint=sweep.fingerprint,
            arms={arm.name: arm.title for arm in sweep.arms},
            trials={trial.name: trial.content_hash for trial in sweep.trials},
        )
        write_json(sweep.folder / SWEEP_FILE, to_json(record))
        write_trials(sweep)
        yield


def refuse_other_sweep(sweep: Sweep, argument: str = "out") -> None:
    """UserError if the sweep's folder holds another one: none of these trials, or one with another content hash.

    argument: the launcher's argument for another folder.
    """
    if not (sweep.folder / SWEEP_FILE).exists():
        return
    before = read_plan(sweep.folder)
    shared = [trial for trial in sweep.trials if trial.name in before.trials]
    other = [trial.name for trial in shared if trial.content_hash != before.trials[trial.name]]
    now = json.loads(json.dumps(dataclasses.asdict(sweep.config)))
    rules = sweep.config.kind != "search" or all(before.sweep.get(name) == now[name] for name in _RULES)
    if before.kind == sweep.config.kind and rules and shared and not other:
        return
    counting = [key for key in now if key not in _FREE and before.sweep.get(key) != now[key]]
    # Growing settings last: if another one changed too, that is the reason.
    changed = sorted(counting, key=lambda key: key in _GROWING)
    reason = (
        f"{changed[0]} was {before.sweep.get(changed[0])}, is now {now[changed[0]]}"
        if changed
        else f"trial {other[0]} was of other images, or of another configs/"
    )
    raise UserError(f"{sweep.folder}: holds another sweep, {before.name} ({reason}): give another {argument}=DIR")


def write_trials(sweep: Sweep) -> None:
    """Rewrite trials.jsonl, one line for each trial that has ended."""
    lines = []
    for trial in sweep.trials:
        ending = read_ending(trial.run)
        if ending is not None:
            record = Trial(
                trial=trial.name,
                arm=trial.arm,
                title=trial.title,
                seed=trial.seed,
                parameters=dict(trial.parameters),
                command=sweep.command(trial),
                run=Path(TRIALS_FOLDER, trial.name),
                dataset_hash=ending.dataset_hash,
                status=ending.status,
                seconds=ending.seconds,
                epochs=ending.epochs,
            )
            lines.append(json.dumps(to_json(record)) + "\n")
    replace_through(sweep.folder / TRIALS_FILE, "".join(lines).encode())


def refuse_failures(sweep: Sweep) -> None:
    """UserError that lists the trials that failed or were interrupted; RuntimeError if one was no user's mistake."""
    endings = {trial.name: read_ending(trial.run) for trial in sweep.trials}
    interrupted = [name for name, ending in endings.items() if ending is None]
    if interrupted:
        raise UserError(f"{sweep.folder}: {', '.join(interrupted)} interrupted: the same command resumes them")
    failed = {name: ending for name, ending in endings.items() if ending is not None and ending.status == "failed"}
    if failed:
        lines = "; ".join(f"{name}: {ending.line}" for name, ending in failed.items())
        kind = UserError if all(ending.mistake for ending in failed.values()) else RuntimeError
        raise kind(f"{len(failed)} of {len(endings)} trials failed, the same command tries them again: {lines}")
