"""Read every raw file: its SHA-256 always, its size and perceptual hash if the bytes are new."""

import errno
import hashlib
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.ingest.images import ImageFacts, inspect_image
from data_pipeline.ingest.regions import Region, file_of, region_of
from data_pipeline.parallel import Work

Known = Callable[[Sequence[str]], dict[str, ImageFacts]]
_GONE = "gone since the folder was listed"


@dataclass(frozen=True, slots=True)
class _Identity:
    """The id of a path's file, or why there is none."""

    id: str = ""
    problem: str = ""  # why the path is no file
    refusal: str = ""  # why the system does not let it be read


def scan(paths: Sequence[Path], known: Known, work: Work) -> list[tuple[str, ImageFacts]]:
    """Id ('' for a path that is no file) and facts of each file or region (`split_region`), in order.

    known: ids -> facts of those that were decoded before; such files are only hashed. A path that is no file (a pipe, a
    broken link) has a problem. UserError for files that the system refuses to read, for one that changes meanwhile, and
    for one that a node of the cluster does not see.
    """
    found = list(work.map_images(_identify, paths, "reading images", in_threads=True))
    if work.map_tasks is not None:
        _refuse_unseen([path for path, file in zip(paths, found, strict=True) if file.problem == _GONE])
    _refuse_unread([(path, file.refusal) for path, file in zip(paths, found, strict=True) if file.refusal])
    facts = known([file.id for file in found if file.id])
    new = {file.id: path for file, path in zip(found, paths, strict=True) if file.id and file.id not in facts}
    facts |= dict(zip(new, work.map_images(_inspect, list(new.items()), "decoding images"), strict=True))
    return [(file.id, facts[file.id] if file.id else ImageFacts(None, None, None, file.problem)) for file in found]


def no_file(path: Path) -> str:
    """Why the path is no regular file; '' for a file. OSError when the system refuses to look."""
    try:
        mode = file_of(path).stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return "a link to nothing" if file_of(path).is_symlink() else _GONE
    # Reading a pipe would wait forever for its writer, and a device has no end.
    kinds = ("socket", stat.S_ISSOCK), ("pipe", stat.S_ISFIFO), ("folder", stat.S_ISDIR), ("device", stat.S_ISCHR)
    return "" if stat.S_ISREG(mode) else f"a {next((kind for kind, is_it in kinds if is_it(mode)), 'device')}, no file"


def read_unchanged(path: Path, identity: str) -> bytes:
    """The bytes of the whole scanned raw file; UserError when they have changed or cannot be read."""
    try:
        raw = file_of(path).read_bytes()
    except OSError as error:
        _refuse_unread([(path, str(error.strerror))])
        raise
    if _identity(raw, region_of(path)) != identity:
        raise UserError(f"{path}: changed while the data set was being built; run the build again")
    return raw


def _identity(raw: bytes, region: Region | None) -> str:
    """SHA-256 (hex) of a file's bytes; for a region, of the file's and the region."""
    whole = hashlib.sha256(raw).hexdigest()
    return whole if region is None else hashlib.sha256(f"{whole}{region}".encode()).hexdigest()


def _identify(path: Path) -> _Identity:
    try:
        problem = no_file(path)
        if problem:
            return _Identity(problem=problem)
        return _Identity(_identity(file_of(path).read_bytes(), region_of(path)))
    except FileNotFoundError:
        return _Identity(problem=_GONE)
    except OSError as error:
        return _Identity(refusal=str(error.strerror))


def _refuse_unseen(gone: Sequence[Path]) -> None:
    """UserError for files that another node did not find, and this one sees."""
    here = [path for path in gone if file_of(path).exists()]
    if here:
        raise UserError(
            f"{here[0]}: a node of the cluster does not see this file, nor {len(here) - 1} more: the raw images must "
            "lie on a file system that all nodes see, at the same path"
        )


def _refuse_unread(refused: Sequence[tuple[Path, str]]) -> None:
    """UserError that names files which the system refuses to read, if there are any."""
    if not refused:
        return
    path, reason = refused[0]
    others = ", ".join(other.name for other, _ in refused[1:4]) + (", ..." if len(refused) > 4 else "")
    more = f"; nor can {len(refused) - 1} more: {others}" if others else ""
    raise UserError(f"{path}: cannot be read ({reason}){more}; make it readable or move it out of the source")


def _inspect(file: tuple[str, Path]) -> ImageFacts:
    identity, path = file
    return inspect_image(read_unchanged(path, identity), region_of(path))
