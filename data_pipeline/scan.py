"""Read every raw file: its SHA-256 each time, and for bytes not seen before the facts that decoding gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from data_pipeline.errors import UserError
from data_pipeline.images import ImageFacts, inspect_image
from data_pipeline.parallel import TaskMap, process_map, thread_map
from data_pipeline.progress_bar import progress_bar

Item = TypeVar("Item")

_FILES_PER_TASK = 32


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """The id of a raw file and what is in it."""

    id: str
    facts: ImageFacts


def scan(
    paths: Sequence[Path],
    known: Mapping[str, ImageFacts],
    workers: int,
    progress: bool,
    map_tasks: TaskMap | None = None,
) -> Iterator[ScannedFile]:
    """Scan files, in order. `known` holds the facts of ids that were decoded before: those are only hashed.

    map_tasks: who does it, in place of `workers` threads and processes of this machine.

    UserError for a file that the system will not read (that says nothing about the image in it), and for
    one that changes between the two looks.
    """
    with progress_bar(len(paths), "reading images", "image", enabled=progress) as bar:
        # Hashing lets go of the interpreter lock: threads do, and an unchanged source starts no process.
        hashing = map_tasks or partial(thread_map, workers=workers)
        ids = []
        for identities in hashing(_hash_files, _tasks(paths)):
            ids += identities
            bar.update(len(identities))
    new = {identity: path for identity, path in zip(ids, paths, strict=True) if identity not in known}
    decoded: dict[str, ImageFacts] = {}
    with progress_bar(len(new), "decoding images", "image", enabled=progress and bool(new)) as bar:
        decoding = map_tasks or partial(process_map, workers=workers)
        for facts in decoding(_inspect_files, _tasks(list(new.items()))):
            decoded.update(facts)
            bar.update(len(facts))
    for identity in ids:
        yield ScannedFile(identity, known[identity] if identity in known else decoded[identity])


def read_raw(path: Path) -> bytes:
    """The bytes of a raw file; UserError when the system will not give them."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend it or move it out of the source") from None


def read_unchanged(path: Path, identity: str) -> bytes:
    """The bytes of a raw file that was scanned before; UserError when they are no longer the same."""
    raw = read_raw(path)
    if hashlib.sha256(raw).hexdigest() != identity:
        raise UserError(f"{path}: changed while the data set was being built; run the build again")
    return raw


def _tasks(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + _FILES_PER_TASK] for start in range(0, len(items), _FILES_PER_TASK)]


def _hash_files(paths: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(read_raw(path)).hexdigest() for path in paths]


def _inspect_files(files: Sequence[tuple[str, Path]]) -> dict[str, ImageFacts]:
    return {identity: inspect_image(read_unchanged(path, identity)) for identity, path in files}
