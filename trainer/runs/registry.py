"""What there is to train: a task is a folder of trainer/tasks, an algorithm a file of its `algorithms`.

Names are those of the files, so they are known before anything is imported.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.errors import UserError
from trainer.runs.arguments import nearest
from trainer.runs.configuration import typed

if TYPE_CHECKING:
    from trainer.runs.task import Task

_TASKS = Path(__file__).resolve().parents[1] / "tasks"
_algorithms: dict[str, type[Any]] = {}
Class = TypeVar("Class", bound=type[Any])


def task(kind: str, where: str = "") -> "Task[Any]":
    """The task of a run's `kind`. UserError, naming `where`, for an unknown kind."""
    if kind in ("", "None"):
        raise UserError(f"{where}: written by an older version, or by no launcher that trains: train again")
    if not (_TASKS / kind / "task.py").exists():
        kinds = ", ".join(sorted(path.parent.name for path in _TASKS.glob("*/task.py")))
        raise UserError(f"{where}: no kind of run is called {kind!r}; there are {kinds}")
    return importlib.import_module(f"trainer.tasks.{kind}.task").TASK


def registered(algorithm: Class) -> Class:
    """Class decorator: registers an algorithm under its file's name."""
    _algorithms[algorithm.__module__] = algorithm
    return algorithm


def algorithm_names(kind: str) -> list[str]:
    """Names of a task's algorithms."""
    return sorted(path.stem for path in (_TASKS / kind / "algorithms").glob("[!_]*.py"))


def algorithm_class(kind: str, name: str) -> Any:
    """The algorithm of that name."""
    module = f"trainer.tasks.{kind}.algorithms.{name}"
    importlib.import_module(module)
    return _algorithms[module]


def check_algorithm(kind: str, name: str, key: str = "model.algorithm") -> None:
    """ValueError for a name that is none of the task's algorithms."""
    names = algorithm_names(kind)
    if name not in names:
        raise ValueError(f"{key}={name} is none of {', '.join(names)}{nearest(name, names)}")


def read_options(kind: str, name: str, values: Mapping[str, Any]) -> Any:
    """An algorithm's own settings, `model.options`, as its `Options`. UserError for an unknown one or a wrong type."""
    return typed(algorithm_class(kind, name).Options, values, "model.options")


@dataclass(frozen=True)
class NoOptions:
    """Options of an algorithm that has no settings."""
