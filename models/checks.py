"""Checks that all configurations of networks share."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from models.errors import ModelError


def check_choices(config: Any, group: str) -> None:
    """ModelError where a field that is a Literal holds something else."""
    for field, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, field) not in get_args(hint):
            choices = ", ".join(get_args(hint))
            raise ModelError(f"{group}.{field}={getattr(config, field)!r}: choose one of {choices}")


def check_at_least_one(config: Any, group: str, field: str) -> None:
    """ModelError where a count is below one."""
    if getattr(config, field) < 1:
        raise ModelError(f"{group}.{field}={getattr(config, field)}: must be at least 1")
