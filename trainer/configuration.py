"""Frozen dataclasses as configuration: their schema for Hydra, and typed objects back from plain values.

OmegaConf checks names and types but knows neither Literal nor how to change a frozen
dataclass. So it is given a plain twin of each dataclass, in which a Literal is a string; the
choices are checked when the values become the dataclass itself.
"""

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_pipeline.errors import UserError

Config = TypeVar("Config")
# `int | None` is the one, `Literal[...] | None` the other.
_UNIONS = (types.UnionType, typing.Union)


def schema_of(kind: Any, defaults: Any = None) -> type:
    """The dataclass's twin for OmegaConf and Hydra: same names, types and defaults.

    defaults: a dataclass of this kind whose values are the twin's defaults; None takes the kind's own.
    """
    hints = get_type_hints(kind)
    defaults = kind() if defaults is None else defaults
    fields = []
    for field in dataclasses.fields(kind):
        value = getattr(defaults, field.name)
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            twin = schema_of(typing.cast(type, hint), value)
            fields.append((field.name, twin, dataclasses.field(default_factory=twin)))
        else:
            plain = _plain(value, hint)
            factory = dataclasses.field(default_factory=functools.partial(copy.copy, plain))
            fields.append((field.name, _without_literal(hint), factory))
    return dataclasses.make_dataclass(kind.__name__, fields)


def _plain(value: Any, hint: Any) -> Any:
    """The default as OmegaConf takes it."""
    if isinstance(value, dict):
        # Its keys are the user's to name: Hydra closes every other node to names that are not there yet.
        key, element = get_args(hint)
        return DictConfig(
            value, key_type=key, element_type=element, ref_type=hint, is_optional=False, flags={"struct": False}
        )
    return list(value) if isinstance(value, tuple | list) else value


def read_file(
    kind: type[Config], path: Path, changes: Sequence[str], what: str, defaults: Mapping[str, Any] | None = None
) -> Config:
    """A YAML file over `defaults`, with `changes` (key=value, the command line's) laid over both, as the dataclass.

    what: the file is, and the argument that names it. UserError, one line that names the file, where there is none,
    for an unknown key, and for a value that cannot be.
    """
    try:
        content = OmegaConf.load(path)
        merged = OmegaConf.merge(dict(defaults or {}), content, OmegaConf.from_dotlist(list(changes)))
    except OSError as error:
        raise UserError(f"{path}: no {what} file to read ({error.strerror}): give {what}=FILE.yaml") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{path}: no {what} can be read from it: {first_line(error)}") from error
    return typed(kind, merged, str(path))


def typed(kind: type[Config], values: Any, where: str) -> Config:
    """The dataclass filled with `values`. UserError, one line, for an unknown name, type or choice."""
    plain = OmegaConf.to_container(values) if OmegaConf.is_config(values) else values
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema_of(kind)), plain)
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {first_line(error)}") from error
    return _build(kind, OmegaConf.to_container(merged, resolve=True), where, "")


def first_line(error: BaseException) -> str:
    """What OmegaConf says of an error, and of which key, in one line."""
    lines = str(error).strip().splitlines()
    key = next((line.split(":", 1)[1].strip() for line in lines if "full_key:" in line), "")
    return f"{key}: {lines[0]}" if key else lines[0]


def _build(kind: type[Config], values: Any, where: str, prefix: str) -> Config:
    hints = get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        hint, key = hints[name], f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            value = _build(typing.cast(type, hint), value, where, f"{key}.")
        elif not _is_choice(value, hint):
            choices = ", ".join(map(str, get_args(_literal_of(hint))))
            raise UserError(f"{where}: {key}={value} is none of {choices}")
        elif get_origin(hint) is tuple:
            value = tuple(value)
        arguments[name] = value
    try:
        return kind(**arguments)
    except ValueError as error:  # a dataclass's own check of its values
        raise UserError(f"{where}: {error}") from error


def _literal_of(hint: Any) -> Any:
    """The Literal in a hint, which may be optional; None where there is none."""
    parts = get_args(hint) if get_origin(hint) in _UNIONS else (hint,)
    return next((part for part in parts if get_origin(part) is Literal), None)


def _is_choice(value: Any, hint: Any) -> bool:
    literal = _literal_of(hint)
    may_be_none = get_origin(hint) in _UNIONS and type(None) in get_args(hint)
    return literal is None or value in get_args(literal) or (value is None and may_be_none)


def _without_literal(hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return str
    if get_origin(hint) in _UNIONS:
        return typing.Union[tuple(_without_literal(part) for part in get_args(hint))]  # noqa: UP007
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]]  # type: ignore[misc]
    return hint
