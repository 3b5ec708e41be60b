"""Names of raw files: as on the disk, and as printable text."""

import os
import re
import unicodedata
from pathlib import Path

from data_pipeline.ingest.regions import split_region

# Control characters, surrogates, line and paragraph separators.
_NOT_PRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def printable(path: str | Path) -> str:
    r"""The path with `\xe4` in place of each byte that is not UTF-8 (old: Latin-1) or a control character."""
    decoded = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        "".join(f"\\x{byte:02x}" for byte in character.encode())
        if unicodedata.category(character) in _NOT_PRINTED
        else character
        for character in decoded
    )


def on_disk(folder: Path, path: str) -> Path:
    """The file below the folder whose `printable` name is `path`; a region at its end is kept."""
    if "\\x" not in path or os.path.lexists(folder / split_region(path)[0]):
        return folder / path
    written = _ESCAPED.sub(lambda escaped: bytes([int(escaped[1], 16)]), path.encode())
    return folder / os.fsdecode(written)
