"""Read every raw file: its SHA-256 each time, and for bytes not seen before the facts that decoding gives."""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from data_pipeline.errors import UserError
from data_pipeline.ingest.images import ImageFacts, inspect_image
from data_pipeline.parallel import TaskMap, process_map, thread_map
from data_pipeline.progress_bar import progress_bar

Item = TypeVar("Item")

_FILES_PER_TASK = 32


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """The id of a raw file, '' for what is no file, and what is in it."""

    id: str
    facts: ImageFacts


@dataclass(frozen=True, slots=True)
class _Identity:
    """The id of a file; or why it is none, whatever its name says; or why the system does not give its bytes."""

    id: str = ""
    problem: str = ""
    refusal: str = ""


def scan(
    paths: Sequence[Path],
    known: Mapping[str, ImageFacts],
    workers: int,
    progress: bool,
    map_tasks: TaskMap | None = None,
) -> Iterator[ScannedFile]:
    """Scan files, in order. `known` holds the facts of ids that were decoded before: those are only hashed.

    map_tasks: who does it, in place of `workers` threads and processes of this machine.

    What is no file (a pipe, a link to nothing) is a file with a problem. UserError for files that the system will not
    read (that says nothing about the images in them), and for one that changes between the two looks.
    """
    with progress_bar(len(paths), "reading images", "image", enabled=progress) as bar:
        # Hashing lets go of the interpreter lock: threads do, and an unchanged source starts no process.
        hashing = map_tasks or partial(thread_map, workers=workers)
        found: list[_Identity] = []
        for identities in hashing(_identify_files, _tasks(paths)):
            found += identities
            bar.update(len(identities))
    _refuse_unread([(path, file.refusal) for path, file in zip(paths, found, strict=True) if file.refusal])
    new = {file.id: path for file, path in zip(found, paths, strict=True) if file.id and file.id not in known}
    decoded: dict[str, ImageFacts] = {}
    with progress_bar(len(new), "decoding images", "image", enabled=progress and bool(new)) as bar:
        decoding = map_tasks or partial(process_map, workers=workers)
        for facts in decoding(_inspect_files, _tasks(list(new.items()))):
            decoded.update(facts)
            bar.update(len(facts))
    for file in found:
        if not file.id:
            yield ScannedFile("", ImageFacts(None, None, None, file.problem))
        else:
            yield ScannedFile(file.id, known[file.id] if file.id in known else decoded[file.id])


def read_raw(path: Path) -> bytes:
    """The bytes of a raw file; UserError when the system will not give them."""
    try:
        return path.read_bytes()
    except OSError as error:
        _refuse_unread([(path, str(error.strerror))])
        raise


def no_file(path: Path) -> str:
    """Why this is no file that can be read, whatever its name says; '' for a file. OSError when nobody may look."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return "a link to nothing" if path.is_symlink() else "gone since the folder was listed"
    # Reading a pipe would wait for ever for its writer, and a device has no end.
    kinds = ("socket", stat.S_ISSOCK), ("pipe", stat.S_ISFIFO), ("folder", stat.S_ISDIR), ("device", stat.S_ISCHR)
    return "" if stat.S_ISREG(mode) else f"a {next((kind for kind, is_it in kinds if is_it(mode)), 'device')}, no file"


def read_unchanged(path: Path, identity: str) -> bytes:
    """The bytes of a raw file that was scanned before; UserError when they are no longer the same."""
    raw = read_raw(path)
    if hashlib.sha256(raw).hexdigest() != identity:
        raise UserError(f"{path}: changed while the data set was being built; run the build again")
    return raw


def _tasks(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + _FILES_PER_TASK] for start in range(0, len(items), _FILES_PER_TASK)]


def _identify_files(paths: Sequence[Path]) -> list[_Identity]:
    return [_identify(path) for path in paths]


def _identify(path: Path) -> _Identity:
    try:
        problem = no_file(path)
        return _Identity(problem=problem) if problem else _Identity(hashlib.sha256(path.read_bytes()).hexdigest())
    except FileNotFoundError:
        return _Identity(problem="gone since the folder was listed")
    except OSError as error:
        return _Identity(refusal=str(error.strerror))


def _refuse_unread(refused: Sequence[tuple[Path, str]]) -> None:
    """UserError that names files which the system will not read, if there are any."""
    if not refused:
        return
    path, reason = refused[0]
    others = ", ".join(other.name for other, _ in refused[1:4]) + (", ..." if len(refused) > 4 else "")
    more = f"; nor can {len(refused) - 1} more: {others}" if others else ""
    raise UserError(f"{path}: cannot be read ({reason}){more}; make it readable or move it out of the source")


def _inspect_files(files: Sequence[tuple[str, Path]]) -> dict[str, ImageFacts]:
    return {identity: inspect_image(read_unchanged(path, identity)) for identity, path in files}
