"""The disk side of a build: the lock, the commit, and the removal of what no data set refers to."""

from __future__ import annotations

import errno
import fcntl
import filecmp
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.attachments import ATTACHMENT_FOLDER
from data_pipeline.catalog import Dataset, Sample, write_catalog
from data_pipeline.disk import TEMPORARY_PREFIX, sync_folder, write_through
from data_pipeline.errors import UserError
from data_pipeline.shards.location import SHARD_FOLDER
from data_pipeline.shards.store import CATALOG_FILE, Root
from data_pipeline.shards.writer import index_name

DATASET_FILE = "dataset.json"
REPORT_FILE = "build_report.json"
LOCK_FILE = ".lock"
# What a data set of raw images says in `made_by`; a derived one says more.
BUILT = "build_shards"

# Only files with names that this project gives are ever removed: shards, journals of a derivation, attachments.
OWN_NAMES = {
    SHARD_FOLDER: re.compile(
        r".+-(train|validation|test)-(root|[01]+)-[0-9a-f]{16}\.(tar|idx)|\.made-[0-9a-f]{64}\.json"
    ),
    ATTACHMENT_FOLDER: re.compile(r".+-[0-9a-f]{16}(\..*)?"),
}

# What a disk says when it does not take bytes, or may not, or when a file is where a folder should be.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_REFUSALS |= {errno.ENOTDIR, errno.EEXIST}


class DiskSite:
    """A data set's place on a disk, for one build."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def held(self) -> Iterator[Dataset | None]:
        """Hold the place (`build_lock`), and yield the data set that is there, if any (`cut_short_is_whole`)."""
        with build_lock(self.root), cut_short_is_whole(self.root) as old:
            yield old

    def shard_folder(self) -> Path:
        """Where shards are written to."""
        folder = self.root / SHARD_FOLDER
        folder.mkdir(exist_ok=True)
        return folder

    def whole_shards(self, old: Dataset) -> set[str]:
        """The old data set's shards that are there at their size, with their index."""
        whole = set()
        for name, facts in old.metadata["shards"].items():
            path = old.shard_path(name)
            if path.is_file() and path.stat().st_size == facts["bytes"] and path.with_name(index_name(name)).is_file():
                whole.add(name)
        return whole

    def commit(self, samples: Sequence[Sample], metadata: dict[str, Any], report: dict[str, Any]) -> None:
        """Commit (`commit`), and remove what only the old data set or a killed build had."""
        commit(self.root, samples, metadata, report)
        collect_leftovers(self.root, metadata)


@contextmanager
def build_lock(root: Path) -> Iterator[None]:
    """Make the folder and hold it against a second build; UserError when it cannot be a data set's folder.

    When the build inside fails and the folder was not there before, it is gone again afterwards.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    with refusal_is_users(root):
        root.mkdir(parents=True, exist_ok=True)
        refuse_foreign(root, [path.name for path in root.iterdir()])
        lock = os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another build is at work here; wait until it has ended") from None
        with refusal_is_users(root):
            yield
    except BaseException:
        if made:
            (root / LOCK_FILE).unlink(missing_ok=True)
            _remove_empty([root / SHARD_FOLDER, *made])
        raise
    finally:
        os.close(lock)


@contextmanager
def cut_short_is_whole(root: Path) -> Iterator[Dataset | None]:
    """Yield the data set that is there, if any; UserError for one that was not built from raw images.

    However the build inside ends before its time, what it left is removed and the old data set stays.
    """
    old = Dataset.read_catalog(root) if (root / CATALOG_FILE).exists() else None
    refuse_derived(root, old)
    try:
        yield old
    except BaseException:
        # The catalogue on disk says which shards count, whether the commit had happened or not.
        named: Mapping[str, Any] | None = {}
        if (root / CATALOG_FILE).exists():
            try:
                named = Dataset.read_catalog(root).metadata
            except UserError:
                named = None  # damaged: nobody can say what is left over
        if named is not None:
            collect_leftovers(root, named)
        raise


def commit(root: Path, samples: Sequence[Sample], metadata: dict[str, Any], report: dict[str, Any]) -> None:
    """Put the new catalogue in the place of the old one; `dataset.json` and the report follow it.

    All three are on disk under temporary names first, so that a full disk is met before the commit.
    """
    new = {name: root / f"{TEMPORARY_PREFIX}{name}" for name in (CATALOG_FILE, DATASET_FILE, REPORT_FILE)}
    write_catalog(new[CATALOG_FILE], samples, metadata)
    write_through(new[DATASET_FILE], mirror_of(metadata))
    write_through(new[REPORT_FILE], report_text(report))
    for folder in OWN_NAMES:
        if (root / folder).is_dir():
            sync_folder(root / folder)
    for name, temporary in new.items():
        if name == CATALOG_FILE and (root / name).exists() and filecmp.cmp(temporary, root / name, shallow=False):
            temporary.unlink()
            continue
        os.replace(temporary, root / name)
        sync_folder(root)


def leftovers(root: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """What the data set's metadata does not name, and temporary files; nothing that others put here."""
    named = names_of(metadata)
    found = []
    for folder, own_name in {".": None, **OWN_NAMES}.items():
        for path in (root / folder).iterdir() if (root / folder).is_dir() else ():
            unnamed = own_name is not None and own_name.fullmatch(path.name) and path.name not in named
            if unnamed or path.name.startswith(TEMPORARY_PREFIX):
                found.append(path)
    return found


def collect_leftovers(root: Path, metadata: Mapping[str, Any]) -> None:
    """Remove them."""
    for path in leftovers(root, metadata):
        path.unlink(missing_ok=True)


def names_of(metadata: Mapping[str, Any]) -> set[str]:
    """The files of its own that a data set's metadata names: shards, their indices, attachments."""
    shards = [name for name, facts in metadata.get("shards", {}).items() if "folder" not in facts]
    attached = {facts["file"] for facts in metadata.get("attachments", {}).values()}
    return {*shards, *map(index_name, shards), *attached}


def mirror_of(metadata: Mapping[str, Any]) -> bytes:
    """What `dataset.json` shows of a catalogue's metadata."""
    return (json.dumps(metadata, indent=2, sort_keys=True) + "\n").encode()


def report_text(report: Mapping[str, Any]) -> bytes:
    """What `build_report.json` holds."""
    return (json.dumps(report, indent=2) + "\n").encode()


def refuse_foreign(root: Root, names: Collection[str]) -> None:
    """UserError for a place that holds something else: a data set is never mixed into raw images, say."""
    if CATALOG_FILE in names:
        return
    own = {LOCK_FILE, SHARD_FOLDER, ATTACHMENT_FOLDER, DATASET_FILE, REPORT_FILE}
    foreign = [name for name in sorted(names) if name not in own and not name.startswith(TEMPORARY_PREFIX)]
    if foreign:
        raise UserError(f"{root}: no data set, yet it holds {foreign[0]}; name a new or an empty folder")


def refuse_derived(root: Root, old: Dataset | None) -> None:
    """UserError for a data set that was not built from raw images."""
    if old is not None and old.metadata["made_by"] != BUILT:
        raise UserError(f"{root}: was derived from another data set; name another folder, or build that one again")


@contextmanager
def refusal_is_users(root: Root) -> Iterator[None]:
    """What the disk refuses is the user's to mend: one line instead of a traceback."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        where = error.filename or root
        raise UserError(
            f"{root}: cannot write the data set ({error.strerror}: {where}); make room or name a folder "
            f"that can be written; what was there is unchanged"
        ) from None


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            if folder.exists():
                return
