"""A launcher's arguments over its files of configs/ as a typed configuration."""

import copy
import functools
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data_pipeline.errors import UserError
from trainer.runs.arguments import nearest, read_arguments, split_argument
from trainer.runs.configuration import lay_over, typed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Config = TypeVar("Config")


def read_config(kind: type[Config], name: str, arguments: Sequence[str]) -> Config:
    """`configs/<name>.yaml` over the dataclass `kind`, with the command line's `key=value` laid over both.

    Of a key that is given twice the later wins, so that a script may end with what its user adds. Raises UserError for
    an unknown key or choice, a wrong type, or an argument that is not key=value. Hydra composes the files; what is
    written on the command line is read by the dataclass's types alone.
    """
    groups, choices, own = config_groups(name), {}, []
    for argument in arguments:
        key, value = split_argument(argument)
        if key not in groups:
            own.append(argument)
        else:
            choices[key] = _checked_choice(key, value)
    told = read_arguments(kind, own)
    values = copy.deepcopy(_compose(CONFIGS, name, tuple(choices.items())))
    lay_over(values, told)
    return typed(kind, values, "")


def config_groups(name: str) -> dict[str, str]:
    """The groups of settings of `configs/<name>.yaml`, each with the file of it that is the default."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) or {}
    chosen = [entry for entry in content.get("defaults", ()) if isinstance(entry, dict)]
    return {group: choice for entry in chosen for group, choice in entry.items()}


def _checked_choice(group: str, choice: str) -> str:
    choices = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    if choice not in choices:
        raise UserError(
            f"{group}={choice}: no file of configs/{group}{nearest(choice, choices)}; there are {', '.join(choices)}"
        )
    return choice


@functools.cache  # the stages of an experiment differ in other arguments, and Hydra takes its time
def _compose(configs: Path, name: str, choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """`configs/<name>.yaml` and the files of its groups as plain values, which a caller must not change."""
    # Here: neither --help nor a wrong argument waits for Hydra.
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        with initialize_config_dir(str(configs), version_base=None):
            composed = compose(name, overrides=[f"{group}='{choice}'" for group, choice in choices])
    except HydraException as error:
        raise UserError(f"configs/{name}.yaml: {' '.join(str(error.__cause__ or error).split())}") from error
    return typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
