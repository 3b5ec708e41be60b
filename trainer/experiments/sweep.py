"""A sweep: planned as a whole before anything runs, then run by Ray, and resumed if interrupted.

SWEEP/sweep.json records what the sweep trains, SWEEP/trials.jsonl the trials that ended. trials/NAME is a trial's run
directory, trials/NAME.ended.json how it ended. stages/ holds what trials share, tune/ what Ray Tune writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from data_pipeline.catalog import Dataset
from data_pipeline.disk import file_lock, remove_leftovers, replace_through
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Root, root_of
from trainer.experiments.ablation import Arm, arms_of_seeds
from trainer.experiments.launches import LAUNCHER_CONFIGS, StagePlanner
from trainer.experiments.resources import Resources
from trainer.experiments.results import SWEEP_FILE, TRIALS_FILE, TRIALS_FOLDER, SweepRecord, Trial, read_plan
from trainer.experiments.stages import Stage, content_hash_of, describe, in_order
from trainer.experiments.sweep_config import SweepConfig, parameter_sets
from trainer.experiments.trial import PlannedTrial, read_ending
from trainer.loop.selection import Selection
from trainer.metrics.records import to_json, write_json
from trainer.runs import registry
from trainer.runs.arguments import later_wins, written
from trainer.runs.config import RunConfig, fingerprint

# Settings that add trials to a sweep, or take some away, and leave the others as they are.
_GROWING = ("seeds", "arms", "models", "trials")
# Settings that decide which trials of a search train to the end.
_RULES = ("scheduler", "grace_epochs", "reduction")
# Settings that do not affect a trial's result.
_FREE = ("name", "shards", "max_concurrent_trials")


@dataclass(frozen=True)
class Sweep:
    """All that a sweep will do, known before any of it runs."""

    config: SweepConfig
    folder: Path
    stages_folder: Path  # may be shared with other sweeps
    arms: tuple[Arm, ...]  # one for each generator seed, where generators made its images
    trials: tuple[PlannedTrial, ...]
    selection: Selection | None  # how a trial's best epoch is chosen; None: by nothing

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
        waiting = {(trial.arm, trial.generator_seed) for trial in self.to_run}
        datasets = [arm.dataset for arm in self.arms if (arm.name, arm.generator_seed) in waiting]
        return in_order((dataset for dataset in datasets if isinstance(dataset, Stage)), self.stages_folder)

    @property
    def reference(self) -> str | None:
        """The arm that the others are compared with."""
        return None if self.config.kind == "search" else self.arms[0].name

    @property
    def metric(self) -> str | None:
        """The score of an epoch's record that trials are compared by."""
        return None if self.selection is None else f"validation_{self.selection.score}"

    @property
    def mode(self) -> Literal["max", "min"]:
        """Which end of the metric is better."""
        return "max" if self.selection is None or self.selection.higher_is_better else "min"

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

    UserError, naming the sweep file `where`, for what a launcher would refuse, for two trials that are one training and
    for trials that are to be compared by a score and have none in common.
    """
    folder, shards = folder.resolve(), root_of(str(config.shards))
    stages_folder = folder / "stages" if stages_folder is None else stages_folder.resolve()
    if isinstance(shards, Path):
        shards = shards.resolve()
    resources = config.resources_per_trial
    dataset = Dataset.open(shards)
    planner = StagePlanner(where, resources, dataset.in_store)
    arms = _arms(config, shards, planner)
    trials: dict[str, PlannedTrial] = {}
    for arm in arms:
        source = arm.dataset.folder(stages_folder) if isinstance(arm.dataset, Stage) else arm.dataset
        images = content_hash_of(arm.dataset)
        for seed in config.seeds:
            name = f"{arm.name}{f'-generator{arm.generator_seed}' if arm.generator_seed else ''}-seed{seed}"
            # By default a trial would decode with all cores of its machine.
            overrides = later_wins((f"data.threads={resources.threads}", *config.fixed, *arm.overrides, f"seed={seed}"))
            arguments = [f"shards={source}", f"run={folder / TRIALS_FOLDER / name}", *overrides]
            run = planner.configure(f"trial {name}", config.launcher, arguments)
            content_hash = _content_hash(run, images, resources)
            trial = PlannedTrial(
                name, arm.name, arm.title, arm.generator_seed, seed, arm.parameters, overrides, run, content_hash
            )
            same = trials.setdefault(content_hash, trial)
            if same is not trial:
                raise UserError(f"{where}: trials {same.name} and {name} are one and the same training: leave one out")
    found = tuple(trials.values())
    selection = _selection(config, found, dataset, where)
    return Sweep(config, folder, stages_folder, tuple(arms), found, selection)


def _selection(config: SweepConfig, trials: Sequence[PlannedTrial], dataset: Dataset, where: Path) -> Selection | None:
    """How the trials' best epochs are chosen. UserError where they are compared by it and have no score in common."""
    task = registry.task(LAUNCHER_CONFIGS[config.launcher].kind)
    found = [task.selection(trial.config, dataset) for trial in trials]
    scores = {each.score if each else None for each in found}
    by_score = config.kind == "search" or not task.answers_test
    if by_score and (None in scores or len(scores) > 1):
        names = ", ".join(sorted(map(str, scores)))
        raise UserError(f"{where}: trials are compared by one score, which each computes after every epoch: {names}")
    return found[0]


def _content_hash(config: RunConfig, images: str, resources: Resources) -> str:
    """SHA-256 hex of all that decides a training's result, the order of its sums included."""
    facts = {
        "images": images,
        "workers": str(resources.workers),
        "threads": str(resources.threads),
        "device": "gpu" if resources.gpu else "cpu",
    }
    settings = fingerprint(config, facts, "adaptation", "result")
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _arms(config: SweepConfig, shards: Root, planner: StagePlanner) -> list[Arm]:
    """What is trained with every seed."""
    if config.kind == "comparison":
        settings = {model: (f"model={model}", *config.model_settings.get(model, ())) for model in config.models}
        return [Arm(model, model, shards, own, {"model": model}) for model, own in settings.items()]
    if config.kind == "search":
        points = parameter_sets(config)
        return [
            Arm(f"point{number}", ", ".join(arguments), shards, arguments, point)
            for number, point in enumerate(points)
            for arguments in [tuple(f"{name}={written(value)}" for name, value in point.items())]
        ]
    arms = arms_of_seeds(config.ablation, shards, planner)
    names = [arm.name for arm in arms]
    for name in config.arms or ():
        if name not in names:
            raise UserError(f"{planner.where}: arms: no arm {name}; there are {', '.join(names)}")
    return [arm for arm in arms if config.arms is None or arm.name in config.arms]


def describe_sweep(sweep: Sweep) -> list[str]:
    """Lines to print: every stage and trial, its state, and its command line."""
    resources, config = sweep.config.resources_per_trial, sweep.config
    arms = len({arm.name for arm in sweep.arms})
    lines = [
        f"{config.kind} {config.name}: {len(sweep.trials)} trials of {arms} arm{'s' * (arms != 1)}, each on "
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
            launcher=sweep.config.launcher,
            metric=sweep.metric,
            mode=sweep.mode,
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
    counting = {key: value for key, value in now.items() if key not in _FREE}
    # Growing settings last: if another one changed too, that is the reason.
    changed = sorted(_changes(before.sweep, counting), key=lambda change: change.partition(" ")[0] in _GROWING)
    without = f"trial {next(iter(other or before.trials), '')} was of other images, or of another configs/"
    reason = changed[0] if changed else without
    raise UserError(f"{sweep.folder}: holds another sweep, {before.name} ({reason}): give another {argument}=DIR")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], group: str = "") -> Iterator[str]:
    """What is said of each value that is not as before. A setting that an older version did not have is left out."""
    for key, value in now.items():
        if isinstance(value, Mapping) and isinstance(before.get(key), Mapping):
            yield from _changes(before[key], value, f"{group}{key}.")
        elif key in before and before[key] != value:
            yield f"{group}{key} was {before[key]}, is now {value}"


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
                generator_seed=trial.generator_seed,
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
