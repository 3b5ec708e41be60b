"""A sweep's YAML file: which trainings, each with which share of the cluster."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from trainer.experiments.ablation import AblationConfig
from trainer.experiments.launches import LAUNCHER_CONFIGS
from trainer.experiments.resources import Resources
from trainer.runs.arguments import field_at, without_none
from trainer.runs.config import RunConfig
from trainer.runs.configuration import read_file

# Arguments that the sweep itself gives each trial.
_SET_BY_SWEEP = ("shards", "run", "seed")
# Ray Tune's samplers of a value; those of a list take it as it is.
_LISTS = ("grid_search", "choice")
_RANGES = ("uniform", "quniform", "loguniform", "qloguniform", "randn", "qrandn",
           "randint", "qrandint", "lograndint", "qlograndint")  # fmt: skip
_OF_KIND = {
    "ablation": ("ablation", "arms"),
    "comparison": ("models", "model_settings"),
    "search": ("space", "trials", "scheduler", "grace_epochs", "reduction"),
}


@dataclass(frozen=True)
class SweepConfig:
    """A sweep file.

    kind ablation: the thesis's arms. kind comparison: one arm for each model. kind search: points of `space`, each
    argument of the launcher -> {grid_search: [...]}, each value in turn, or one of Ray Tune's samplers with its
    arguments in their order: {choice: [...]}, {loguniform: [0.0001, 0.01]}, {randint: [1, 5]}, 5 excluded, ...
    scheduler asha: a trial goes on after grace_epochs, and each time it has trained `reduction` times as long, only if
    it is among the best 1/reduction of those so far (asynchronous successive halving, Li et al. 2020). Trials are
    compared by the score that a run of the launcher chooses its best epoch by (train.select_by of a classifier).
    """

    name: str = ""  # default: the file's
    kind: Literal["ablation", "comparison", "search"] | None = None
    launcher: str = "train_classifier"  # what a trial runs; another one for kinds comparison and search only
    shards: str | None = None  # the data set
    fixed: list[str] = field(default_factory=list)  # arguments of the launcher for every trial
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # every training is repeated once with each seed
    resources_per_trial: Resources = field(default_factory=Resources)  # also of each stage
    max_concurrent_trials: int | None = None  # null: as many as fit
    ablation: AblationConfig = field(default_factory=AblationConfig)  # ablation: how its arms are made
    arms: list[str] | None = None  # ablation: only these
    models: list[str] = field(default_factory=list)  # comparison: files of configs/model
    model_settings: dict[str, list[str]] = field(default_factory=dict)  # model -> arguments over those of `fixed`
    space: dict[str, Any] = field(default_factory=dict)  # search: see above
    trials: int = 1  # search: number of random draws; each draw is combined with every point of the grids
    scheduler: Literal["none", "asha"] = "none"
    grace_epochs: int = 1
    reduction: int = 3

    def __post_init__(self) -> None:
        launchers = [name for name, config in LAUNCHER_CONFIGS.items() if issubclass(config, RunConfig)]
        if self.launcher not in launchers:
            raise ValueError(f"launcher={self.launcher} is none of {', '.join(launchers)}")
        if self.kind == "ablation" and self.launcher != "train_classifier":
            raise ValueError(f"launcher={self.launcher}: the arms of an ablation are classifiers: leave it out")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: name one at least, and each once")
        if self.max_concurrent_trials is not None and self.max_concurrent_trials < 1:
            raise ValueError(f"max_concurrent_trials={self.max_concurrent_trials}: must be at least 1, or null")
        for where, arguments in {
            "fixed": self.fixed,
            **{f"model_settings.{model}": arguments for model, arguments in self.model_settings.items()},
        }.items():
            for argument in arguments:
                key, sign, _ = argument.partition("=")
                if not sign:
                    raise ValueError(f"{where}: {argument} is not key=value")
                _refuse_own(key, where)
        if self.kind is None:
            return
        for kind, names in _OF_KIND.items():
            for name in names:
                if kind != self.kind and getattr(self, name) != _DEFAULTS[name]:
                    raise ValueError(f"{name} is for kind: {kind}: leave it out of a sweep of kind: {self.kind}")
        if self.kind == "comparison" and (not self.models or len(set(self.models)) < len(self.models)):
            raise ValueError(f"models={self.models}: name one at least, and each once")
        for model in self.model_settings:
            if model not in self.models:
                raise ValueError(f"model_settings.{model}: not one of models={self.models}")
        if self.kind == "search":
            _check_search(self)


def _check_search(sweep: SweepConfig) -> None:
    if not sweep.space:
        raise ValueError(f"space: empty: name an argument of {sweep.launcher}.py and what it is taken from")
    for name, source in sweep.space.items():
        _refuse_own(name, "space")
        _check_source(name, source, _is_text(LAUNCHER_CONFIGS[sweep.launcher], name))
    drawn = any("grid_search" not in source for source in sweep.space.values())
    if sweep.trials < 1 or (sweep.trials > 1 and not drawn):
        raise ValueError(f"trials={sweep.trials}: how many draws; 1 where nothing is drawn, all of a grid is tried")
    if sweep.grace_epochs < 1 or sweep.reduction < 2:
        raise ValueError(
            f"grace_epochs={sweep.grace_epochs}, reduction={sweep.reduction}: must be at least 1 and at least 2"
        )


def _check_source(name: str, source: Any, text: bool) -> None:
    """text: whether the argument is text."""
    known = (*_LISTS, *_RANGES)
    if not isinstance(source, dict) or len(source) != 1 or next(iter(source)) not in known:
        raise ValueError(f"space.{name}={source}: write one of {', '.join(known)}, {{grid_search: [...]}} say")
    how, values = next(iter(source.items()))
    if not isinstance(values, list) or not values:
        raise ValueError(f"space.{name}.{how}={values}: write a list")
    if how not in _LISTS:
        try:
            _sampler(source).sample(random_state=np.random.RandomState(0))
        except (TypeError, ValueError) as error:
            raise ValueError(f"space.{name}.{how}={values}: {str(error).partition('.')[0]}") from error
        if "randn" not in how and values[0] > values[1]:
            raise ValueError(f"space.{name}.{how}={values}: write the smaller bound first")
    elif text and not all(value is None or isinstance(value, str) for value in values):
        raise ValueError(f"space.{name}.{how}={values}: text that looks like a number or a word of YAML is quoted")


def _is_text(config: type, name: str) -> bool:
    """Whether an argument of a launcher is text; False for an unknown one, which composing it refuses."""
    try:
        return without_none(field_at(config, name)[1])[0] is str
    except UserError:
        return False


def _refuse_own(key: str, where: str) -> None:
    if key in _SET_BY_SWEEP:
        raise ValueError(f"{where}: {key} is for the sweep to set: see shards and seeds, and out=DIR")


_DEFAULTS = dataclasses.asdict(SweepConfig()) | {"ablation": AblationConfig()}


def read_sweep(path: Path, changes: Sequence[str]) -> SweepConfig:
    """The sweep of a file, with `changes` (key=value, the command line's) laid over it.

    UserError, one line that names the file, for an unknown key or a value that cannot be.
    """
    sweep = read_file(SweepConfig, path, changes, "sweep", {"name": path.stem})
    if sweep.kind is None:
        raise UserError(f"{path}: no kind: write kind: ablation, comparison or search")
    if sweep.shards is None:
        raise UserError(f"{path}: no shards: name the data set there, or as shards=DIR on the command line")
    return sweep


def parameter_sets(sweep: SweepConfig) -> list[dict[str, Any]]:
    """The points of a search, each argument -> value, each once.

    A draw is keyed by the argument's name and its number; the first draw is tried at every point of the grids before
    the second. So a sweep of more draws begins with the same points.
    """
    grids = {name: source["grid_search"] for name, source in sweep.space.items() if "grid_search" in source}
    points = [
        {name: values[name] if name in values else _draw(name, source, number) for name, source in sweep.space.items()}
        for number in range(sweep.trials)
        for values in (dict(zip(grids, point, strict=True)) for point in itertools.product(*grids.values()))
    ]
    return list({json.dumps(point, sort_keys=True): point for point in points}.values())


def _sampler(source: dict[str, list[Any]]) -> Any:
    """Ray Tune's sampler of {name: arguments}."""
    from ray import tune  # here: a sweep without draws need not wait for it

    how, values = next(iter(source.items()))
    return tune.choice(values) if how == "choice" else getattr(tune, how)(*values)


def _draw(name: str, source: dict[str, list[Any]], number: int) -> Any:
    key = derive_key(0, "search", name, number) % 2**32
    drawn = _sampler(source).sample(random_state=np.random.RandomState(key))
    # Rounded: it is read and copied by hand.
    return float(f"{drawn:.6g}") if isinstance(drawn, float) and "choice" not in source else drawn
