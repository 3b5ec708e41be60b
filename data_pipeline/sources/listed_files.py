"""The file that a list means, when its name is not written as the disk has it."""

from __future__ import annotations

import os
import posixpath
import re

from data_pipeline.names import Names, shown

_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class ListedFiles:
    """Files by the paths that people write: relative to a folder, or absolute."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._listings: dict[str, Names] = {}

    def find(self, written: str) -> list[str]:
        """The files that can be meant, as paths that can be opened: one, none, or several that cannot be told apart.

        The path as it is written goes before all others; then names that people see as equal, folder by folder
        (`Names.matches`), and '\\' for '/'.
        """
        path = posixpath.normpath(written)
        if os.path.isfile(os.path.join(self._folder, path)):
            return [path]
        found: list[str] = ["/" if written.startswith("/") else ""]
        for part in posixpath.normpath(written.replace("\\", "/")).split("/"):
            if not part:
                continue
            if part in (".", ".."):
                found = [posixpath.join(start, part) for start in found]
            else:
                found = [posixpath.join(start, name) for start in found for name in self._inside(start).matches(part)]
        return [path for path in found if os.path.isfile(os.path.join(self._folder, path))]

    def hint(self, written: str) -> str:
        """' (...)' on what may be meant by a path that was not found; '' where nothing is near."""
        if _WINDOWS_PATH.match(written):
            return " (a path of a Windows machine: write it from the table's folder)"
        folder, _, name = posixpath.normpath(written.replace("\\", "/")).rpartition("/")
        start = folder or ("/" if written.startswith("/") else "")
        if not os.path.isdir(os.path.join(self._folder, start)):
            return f" (there is no folder '{shown(start)}')"
        inside = self._inside(start)
        by_stem = [known for known in inside if posixpath.splitext(known)[0] == name]
        if by_stem:
            return f" (there is '{shown(by_stem[0])}': write the suffix)"
        return inside.hint(name)

    def _inside(self, folder: str) -> Names:
        """The names in a folder; none where it cannot be listed."""
        if folder not in self._listings:
            try:
                names = os.listdir(os.path.join(self._folder, folder))
            except (OSError, ValueError):
                names = []
            self._listings[folder] = Names(names)
        return self._listings[folder]
