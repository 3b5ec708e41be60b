"""Frozen dataclasses as configuration: filled with plain values of a file, every value checked against its type."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from data_pipeline.errors import UserError
from trainer.runs.arguments import (
    NULL,
    TYPE_WORDS,
    keys_of,
    nearest,
    read_arguments,
    read_scalar,
    type_hints,
    without_none,
)

Config = TypeVar("Config")
# How a YAML file says None, beside nothing at all.
_NULLS = ("", "~", NULL)


class Plain(str):
    """A scalar of a YAML file that stands there without quotes: what it means follows from its field's type.

    YAML itself would make 2024_01_15 the number 20240115, 10.50 the number 10.5 and `no` the truth value false.
    """


class _Loader(yaml.SafeLoader):
    """YAML with every scalar as text."""

    # Of all that YAML tells from a plain scalar's looks only the merge key.
    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", yaml.SafeLoader.yaml_implicit_resolvers["<"][0][1])]}  # noqa: RUF012

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return Plain(node.value) if node.style is None else str(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if name.tag != "tag:yaml.org,2002:merge"]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


def read_file(
    kind: type[Config], path: Path, changes: Sequence[str], what: str, defaults: Mapping[str, Any] | None = None
) -> Config:
    """A YAML file over `defaults`, with `changes` (key=value, the command line's) laid over both, as the dataclass.

    what: the file is, and the argument that names it. UserError, one line that names the file, where there is none,
    for an unknown key, and for a value that cannot be.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: no {what} file to read ({error.strerror}): give {what}=FILE.yaml") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: no {what} can be read from it: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: no {what} can be read from it: write key: value on each line")
    values = {**(defaults or {}), **(content or {})}
    try:
        lay_over(values, read_arguments(kind, changes))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return typed(kind, values, str(path))


def lay_over(values: dict[str, Any], arguments: Sequence[tuple[tuple[str, ...], Any]]) -> None:
    """Set arguments, as `read_arguments` gives them, in nested plain values; a dictionary adds to what is there."""
    for path, value in arguments:
        inner = values
        for name in path[:-1]:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        before = inner.get(path[-1])
        inner[path[-1]] = {**before, **value} if isinstance(value, dict) and isinstance(before, dict) else value


def typed(kind: type[Config], values: Any, where: str) -> Config:
    """The dataclass filled with `values`. UserError, one line, for an unknown name, type or choice.

    where: what UserErrors name first; empty for arguments of the command line.
    """
    try:
        return _filled(kind(), values, "")
    except (UserError, ValueError) as error:  # ValueError: a dataclass's own check of its values
        raise UserError(f"{where}: {error}" if where else str(error)) from error


def _filled(default: Config, values: Any, prefix: str) -> Config:
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'it'}={values}: write a name and a value for each setting")
    kind = type(default)
    hints, names, changes = type_hints(kind), {field.name for field in dataclasses.fields(default)}, {}  # type: ignore[arg-type]
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in names:
            raise UserError(f"{key}: no such key{nearest(key, keys_of(kind, prefix))}")
        if dataclasses.is_dataclass(hints[name]):
            changes[name] = _filled(getattr(default, name), value, f"{key}.")
        else:
            changes[name] = _checked(hints[name], value, key)
    return dataclasses.replace(default, **changes)  # type: ignore[type-var]


def _checked(hint: Any, value: Any, key: str) -> Any:
    """A plain value as its field has it. UserError where it is of another type."""
    inner, optional = without_none(hint)
    origin, number = get_origin(inner), isinstance(value, int | float) and not isinstance(value, bool)
    if (value is None or (isinstance(value, Plain) and value in _NULLS)) and (optional or inner is Any):
        return None
    if isinstance(value, Mapping) and (origin is dict or inner is Any):
        key_hint, element = get_args(inner) or (str, Any)
        return {_checked(key_hint, name, key): _checked(element, each, f"{key}.{name}") for name, each in value.items()}
    if isinstance(value, list | tuple) and (origin in (list, tuple) or inner is Any):
        element = (get_args(inner) or (Any,))[0]
        return (tuple if origin is tuple else list)(_checked(element, each, key) for each in value)
    if isinstance(value, str) and origin not in (dict, list, tuple):
        return read_scalar(inner if isinstance(value, Plain) or inner is not Any else str, str(value), key)
    if inner is Any or (inner is float and number) or (inner in (int, bool) and type(value) is inner):
        return float(value) if inner is float else value
    if origin is Literal and value in get_args(inner):
        return value
    if inner is str or origin is Literal:
        raise UserError(f"{key}: {value} is not read as text here: write it in quotes")
    words = {dict: "{name: value, ...}", list: "a list, [a, b]", tuple: "a list, [a, b]"}
    raise UserError(f"{key}={value}: write {words.get(origin) or TYPE_WORDS[inner]}")
