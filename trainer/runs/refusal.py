"""A launcher's UserError as a record for the process that started it, where that process named a file for it."""

import json
import os
from pathlib import Path

from data_pipeline.disk import replace_through

# Environment variable: the file to write.
REFUSAL_FILE = "HEMAFORGE_REFUSAL_FILE"
_VERSION = 1


def write_refusal(message: str) -> None:
    """Record the message of a UserError; without REFUSAL_FILE in the environment nothing is written."""
    path = os.environ.get(REFUSAL_FILE)
    if path:
        replace_through(Path(path), json.dumps({"format_version": _VERSION, "message": message}).encode())


def take_refusal(path: Path) -> str | None:
    """The recorded message, which is removed; None without one."""
    if not path.exists():
        return None
    message = str(json.loads(path.read_text())["message"])
    path.unlink()
    return message
