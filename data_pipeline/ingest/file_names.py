"""Names of raw files: as they lie on the disk, and as every table, page and terminal takes them."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

# Control characters, halves of characters, line and paragraph separators.
_NOT_PRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def printable(path: str | Path) -> str:
    r"""The path with `\xe4` in place of each byte that is no UTF-8 (old archives: Latin-1) or a control character."""
    decoded = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        "".join(f"\\x{byte:02x}" for byte in character.encode())
        if unicodedata.category(character) in _NOT_PRINTED
        else character
        for character in decoded
    )


def on_disk(folder: Path, path: str) -> Path:
    """Where the file lies that `printable` names so, below the folder."""
    there = folder / path
    if "\\x" not in path or os.path.lexists(there):
        return there
    written = _ESCAPED.sub(lambda escaped: bytes([int(escaped[1], 16)]), path.encode())
    return folder / os.fsdecode(written)
