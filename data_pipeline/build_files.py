"""The disk side of a build: the lock, the commit, and the removal of what no data set refers to."""

from __future__ import annotations

import errno
import fcntl
import filecmp
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.catalog import CATALOG_FILE, SHARD_FOLDER, Dataset, Sample, write_catalog
from data_pipeline.errors import UserError
from data_pipeline.shards import TEMPORARY_PREFIX, index_name, write_through

DATASET_FILE = "dataset.json"
REPORT_FILE = "build_report.json"
_LOCK_FILE = ".lock"

# Only files with names that this project gives are ever removed.
_SHARD_NAME = re.compile(r".+-(train|validation|test)-(root|[01]+)-[0-9a-f]{16}\.(tar|idx)")

# What a disk says when it does not take bytes, or may not, or when a file is where a folder should be.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_REFUSALS |= {errno.ENOTDIR, errno.EEXIST}


@contextmanager
def build_lock(root: Path) -> Iterator[None]:
    """Make the folder and hold it against a second build; UserError when it cannot be a data set's folder.

    When the build inside fails and the folder was not there before, it is gone again afterwards.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    with _refusal_is_users(root):
        root.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(root)
        lock = os.open(root / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another build is at work here; wait until it has ended") from None
        with _refusal_is_users(root):
            yield
    except BaseException:
        if made:
            (root / _LOCK_FILE).unlink(missing_ok=True)
            _remove_empty([root / SHARD_FOLDER, *made])
        raise
    finally:
        os.close(lock)


@contextmanager
def cut_short_is_whole(root: Path) -> Iterator[None]:
    """However the build inside ends before its time, what it left is removed and the old data set stays."""
    try:
        yield
    except BaseException:
        # The catalogue on disk says which shards count, whether the commit had happened or not.
        shards: Collection[str] | None = ()
        if (root / CATALOG_FILE).exists():
            try:
                shards = Dataset.read_catalog(root).metadata["shards"]
            except UserError:
                shards = None  # damaged: nobody can say what is left over
        if shards is not None:
            collect_leftovers(root, shards)
        raise


def commit(root: Path, samples: Sequence[Sample], metadata: dict[str, Any], report: dict[str, Any]) -> None:
    """Put the new catalogue in the place of the old one; `dataset.json` and the report follow it.

    All three are on disk under temporary names first, so that a full disk is met before the commit.
    """
    mirror = json.dumps(metadata, indent=2, sort_keys=True) + "\n"
    new = {name: root / f"{TEMPORARY_PREFIX}{name}" for name in (CATALOG_FILE, DATASET_FILE, REPORT_FILE)}
    write_catalog(new[CATALOG_FILE], samples, metadata)
    write_through(new[DATASET_FILE], mirror.encode())
    write_through(new[REPORT_FILE], (json.dumps(report, indent=2) + "\n").encode())
    _sync_folder(root / SHARD_FOLDER)
    for name, temporary in new.items():
        if name == CATALOG_FILE and (root / name).exists() and filecmp.cmp(temporary, root / name, shallow=False):
            temporary.unlink()
            continue
        os.replace(temporary, root / name)
        _sync_folder(root)


def collect_leftovers(root: Path, shards: Collection[str]) -> None:
    """Remove shards that the data set does not name, and temporary files; nothing that others put here."""
    named = {*shards, *map(index_name, shards)}
    for folder in (root, root / SHARD_FOLDER):
        for path in folder.iterdir() if folder.is_dir() else ():
            ours = folder.name == SHARD_FOLDER and _SHARD_NAME.fullmatch(path.name) and path.name not in named
            if ours or path.name.startswith(TEMPORARY_PREFIX):
                path.unlink(missing_ok=True)


def _refuse_foreign(root: Path) -> None:
    """UserError for a folder that holds something else: a data set is never mixed into raw images, say."""
    if (root / CATALOG_FILE).exists():
        return
    own = {_LOCK_FILE, SHARD_FOLDER, DATASET_FILE, REPORT_FILE}
    names = sorted(path.name for path in root.iterdir())
    foreign = [name for name in names if name not in own and not name.startswith(TEMPORARY_PREFIX)]
    if foreign:
        raise UserError(f"{root}: no data set, yet it holds {foreign[0]}; name a new or an empty folder")


@contextmanager
def _refusal_is_users(root: Path) -> Iterator[None]:
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
