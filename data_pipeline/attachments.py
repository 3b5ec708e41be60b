"""Files attached to a data set, such as the normaliser that made its images: copied, named by content, checked.

The copy's name ends in the hash of its bytes, so a new version never overwrites the one that the catalogue names.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.disk import replacing
from data_pipeline.errors import UserError

ATTACHMENT_FOLDER = "attachments"


def describe_attachments(attachments: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """The catalogue's entries {name: {file, bytes, sha256}}; UserError for a file that cannot be read."""
    described = {}
    for name, path in sorted(attachments.items()):
        if Path(name).name != name:
            raise ValueError(f"{name!r} is not the name of a file")
        sha256 = _sha256(path)
        stem, dot, suffix = name.partition(".")
        file = f"{stem}-{sha256[:16]}{dot}{suffix}"
        described[name] = {"file": file, "bytes": path.stat().st_size, "sha256": sha256}
    return described


def copy_attachment(path: Path, root: Path, facts: Mapping[str, Any]) -> None:
    """Copy a described file into the data set; UserError when it changed since."""
    folder = root / ATTACHMENT_FOLDER
    folder.mkdir(exist_ok=True)
    with replacing(folder / facts["file"]) as temporary:
        shutil.copyfile(path, temporary)
        if _sha256(temporary) != facts["sha256"]:
            raise UserError(f"{path}: changed while it was copied into {root}; start again when it is at rest")


def attachment_location(root: Path, facts: Mapping[str, Any]) -> Path:
    """Path of an attached file; facts: its entry in the catalogue."""
    return root / ATTACHMENT_FOLDER / str(facts["file"])


def check_attachment(root: Path, facts: Mapping[str, Any]) -> Path:
    """Path of an attached file; UserError when its bytes are not those that were attached."""
    path = attachment_location(root, facts)
    if _sha256(path) != facts["sha256"]:
        raise UserError(f"{path}: bytes changed; delete this file and derive the data set again")
    return path


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); bring the file back") from None
