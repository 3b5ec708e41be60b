"""A sweep from its configuration to its report: planned as a whole, then run by Ray, taken up where it was cut off.

SWEEP/sweep.json says which sweep it is and what it trains, SWEEP/trials.jsonl which trials have ended. trials/NAME is a
trial's run directory, trials/NAME.ended.json says how it ended. stages/ holds what trials share, tune/ what Ray Tune
writes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Root, root_of
from data_pipeline.stream.config import default_order
from trainer.experiments.ablation import Arm, ablation_arms
from trainer.experiments.method_stages import Compose
from trainer.experiments.resources import Resources
from trainer.experiments.results import SWEEP_FILE, TRIALS_FILE, TRIALS_FOLDER, read_plan
from trainer.experiments.stages import Stage, content_hash_of, describe, in_order
from trainer.experiments.sweep_config import SweepConfig, parameter_sets
from trainer.experiments.trial import PlannedTrial, read_ending
from trainer.runs.arguments import later_wins, written
from trainer.runs.config import fingerprint
from trainer.tasks.classification.config import ClassifierRunConfig

# What may be added to and taken from a sweep: its other trials stay what they are.
_GROWING = ("seeds", "arms", "models", "trials")
# Which trials of a search go on to the end follows from these.
_RULES = ("metric", "mode", "scheduler", "grace_epochs", "reduction")
# What decides no trial's result.
_FREE = ("name", "shards", "max_concurrent_trials")


@dataclass(frozen=True)
class Sweep:
    """All that a sweep will do, known before any of it is done.

    folder: where it is written. stages_folder: where its stages are, which it may share with others.
    """

    config: SweepConfig
    folder: Path
    stages_folder: Path
    arms: tuple[Arm, ...]
    trials: tuple[PlannedTrial, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex of all that its results follow from."""
        trials = sorted(trial.content_hash for trial in self.trials)
        rules = [getattr(self.config, name) for name in _RULES] if self.config.kind == "search" else []
        return hashlib.sha256(json.dumps([self.config.kind, rules, trials]).encode()).hexdigest()

    @property
    def stages(self) -> list[Stage]:
        """What the trials share, each stage after those that it needs."""
        return in_order(arm.dataset for arm in self.arms if isinstance(arm.dataset, Stage))

    @property
    def stages_to_run(self) -> list[Stage]:
        """Those that a trial waits for."""
        waiting = {trial.arm for trial in self.to_run}
        datasets = [arm.dataset for arm in self.arms if arm.name in waiting]
        return in_order((dataset for dataset in datasets if isinstance(dataset, Stage)), self.stages_folder)

    @property
    def reference(self) -> str | None:
        """The arm that the others are compared with."""
        return None if self.config.kind == "search" else self.arms[0].name

    @property
    def to_run(self) -> list[PlannedTrial]:
        """The trials that have not ended, or have failed, or whose run directory was removed."""
        endings = [(trial, read_ending(trial.run)) for trial in self.trials]
        return [
            trial for trial, ending in endings if ending is None or ending.status == "failed" or not trial.run.is_dir()
        ]

    def command(self, trial: PlannedTrial) -> str:
        """A line for a shell that does a trial again, beside the sweep's own."""
        return trial.command(self.config.resources_per_trial, self.folder / "replays" / trial.name)


def plan_sweep(
    config: SweepConfig,
    folder: Path,
    compose: Callable[[str, Sequence[str]], Any],
    where: Path,
    stages_folder: Path | None = None,
) -> Sweep:
    """Plan every stage and trial.

    stages_folder: None takes one of the sweep's own.
    compose: a launcher's name and its arguments, to its configuration; UserError for an unknown one.
    UserError, naming the sweep file `where`, for what cannot be configured, and for two trials that are one training.
    """
    folder, shards = folder.resolve(), root_of(str(config.shards))
    stages_folder = folder / "stages" if stages_folder is None else stages_folder.resolve()
    if isinstance(shards, Path):
        shards = shards.resolve()
    resources = config.resources_per_trial
    configured = composer(compose, where, resources, Dataset.open(shards).in_store)
    variants = _variants(config, shards, configured, where)
    trials: dict[str, PlannedTrial] = {}
    for arm, parameters in variants:
        source = arm.dataset.folder(stages_folder) if isinstance(arm.dataset, Stage) else arm.dataset
        images = content_hash_of(arm.dataset)
        for seed in config.seeds:
            name = f"{arm.name}-seed{seed}"
            # Without being told, every trial would decode with all the cores of its machine.
            overrides = later_wins((f"data.threads={resources.threads}", *config.fixed, *arm.overrides, f"seed={seed}"))
            arguments = [f"shards={source}", f"run={folder / TRIALS_FOLDER / name}", *overrides]
            run = configured(f"trial {name}", "train_classifier", arguments)
            content_hash = _content_hash(run, images, resources)
            trial = PlannedTrial(name, arm.name, arm.title, seed, parameters, overrides, run, content_hash)
            same = trials.setdefault(content_hash, trial)
            if same is not trial:
                raise UserError(f"{where}: trials {same.name} and {name} are one and the same training: leave one out")
    return Sweep(config, folder, stages_folder, tuple(arm for arm, _ in variants), tuple(trials.values()))


def composer(
    compose: Callable[[str, Sequence[str]], Any], where: Path, resources: Resources, in_store: bool
) -> Compose:
    """What stages and trials are configured by, for data in a store or not. UserErrors name `where` and the work."""

    def configured(what: str, launcher: str, arguments: Sequence[str]) -> Any:
        try:
            composed = compose(launcher, arguments)
            return _ordered(composed, in_store)
        except UserError as error:
            raise UserError(f"{where}: {what} ({launcher}.py): {error}") from error

    return configured


def _ordered(config: Any, in_store: bool) -> Any:
    """A launcher's configuration, with what data.order=null comes to: a training's result follows from it."""
    data = getattr(config, "data", None)
    if data is None or data.order is not None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(data, order=default_order(data, in_store)))


def _content_hash(config: ClassifierRunConfig, images: str, resources: Resources) -> str:
    """SHA-256 hex of all that a training's result follows from: the order of its sums is among it.

    A run may go on with another patience and other micro-batches; from the start they decide where it ends, and over
    which images batch norm takes its means.
    """
    facts = {
        "images": images,
        "workers": str(resources.workers),
        "threads": str(resources.threads),
        "device": "gpu" if resources.gpu else "cpu",
        "patience": str(config.train.patience),
        "micro-batch": str(config.train.micro_batch),
    }
    told = fingerprint(config, facts)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _variants(config: SweepConfig, shards: Root, compose: Compose, where: Path) -> list[tuple[Arm, Mapping[str, Any]]]:
    """What is trained with every seed, and the parameters that tell one from another."""
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
    arms = ablation_arms(config.ablation, shards, config.resources_per_trial.threads, compose)
    names = [arm.name for arm in arms]
    for name in config.arms or ():
        if name not in names:
            raise UserError(f"{where}: arms: no arm {name}; there are {', '.join(names)}")
    return [(arm, {}) for arm in arms if config.arms is None or arm.name in config.arms]


def describe_sweep(sweep: Sweep) -> list[str]:
    """Lines for people: every stage and every trial, how it stands, and its command line."""
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
    """Take the sweep's folder for this process. UserError where another process has it."""
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
            "arms": {arm.name: arm.title for arm in sweep.arms},
            "trials": {trial.name: trial.content_hash for trial in sweep.trials},
        }
        replace_through(sweep.folder / SWEEP_FILE, json.dumps(content, indent=1).encode())
        write_trials(sweep)
        yield


def refuse_other_sweep(sweep: Sweep, argument: str = "out") -> None:
    """UserError where the sweep's folder holds another one: none of these trials, or one that was something else.

    argument: what the user names another folder by.
    """
    if not (sweep.folder / SWEEP_FILE).exists():
        return
    before = read_plan(sweep.folder)
    shared = [trial for trial in sweep.trials if trial.name in before["trials"]]
    other = [trial.name for trial in shared if trial.content_hash != before["trials"][trial.name]]
    now = json.loads(json.dumps(dataclasses.asdict(sweep.config)))
    rules = sweep.config.kind != "search" or all(before["sweep"].get(name) == now[name] for name in _RULES)
    if before["kind"] == sweep.config.kind and rules and shared and not other:
        return
    counting = [key for key in now if key not in _FREE and before["sweep"].get(key) != now[key]]
    # What may grow comes last: where something else changed too, that was it.
    changed = sorted(counting, key=lambda key: key in _GROWING)
    told = (
        f"{changed[0]} was {before['sweep'].get(changed[0])}, is now {now[changed[0]]}"
        if changed
        else f"trial {other[0]} was of other images, or of another configs/"
    )
    raise UserError(f"{sweep.folder}: holds another sweep, {before['name']} ({told}): give another {argument}=DIR")


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
