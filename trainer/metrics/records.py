"""Records as versioned JSON: frozen dataclasses, written whole, checked field by field when read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError

# Of all record types together: goes up when a field of one of them changes.
FORMAT_VERSION = 2

Record = TypeVar("Record")


def to_json(record: Any) -> dict[str, Any]:
    """A record as JSON can hold it, with its format version."""
    return {"format_version": FORMAT_VERSION, **TypeAdapter(type(record)).dump_python(record, mode="json")}


def from_json(kind: type[Record], content: Any) -> Record:
    """The record of `to_json`. ValueError, one line, for another version or a field that is missing or wrong."""
    if not isinstance(content, dict):
        raise ValueError("not a record")
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError("written by an older version")
    try:
        record: Record = TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return record


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write path, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_through(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_record(kind: type[Record], path: Path) -> Record:
    """Read a record of evaluate.py. UserError for a file that is damaged, of another kind or of another version."""
    try:
        return from_json(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not an evaluation that can be read ({error}): run evaluate.py again, or remove it"
        ) from error
