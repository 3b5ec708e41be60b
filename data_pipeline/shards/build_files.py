"""A build on a disk: its lock, its commit, and the removal of files that no data set refers to."""

import errno
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout

from data_pipeline.attachments import ATTACHMENT_FOLDER
from data_pipeline.catalog import Dataset, catalog_bytes
from data_pipeline.disk import TEMPORARY_PREFIX, aside, file_lock, put_in_place, sync
from data_pipeline.errors import UserError
from data_pipeline.partitions import PARTITION_FOLDER
from data_pipeline.shards.location import SHARD_FOLDER
from data_pipeline.shards.made import is_whole
from data_pipeline.shards.store import CATALOG_FILE, Root
from data_pipeline.shards.writer import index_name

DATASET_FILE = "dataset.json"
REPORT_FILE = "build_report.json"
LOCK_FILE = ".lock"
# `made_by` of a data set of raw images; that of a derived one is a table.
BUILT = "build_shards"

# Only files named by this project are ever removed: shards, journals of a derivation, rows, attachments.
OWN_NAMES = {
    SHARD_FOLDER: re.compile(
        r".+-(train|validation|test)-(root|[01]+)-[0-9a-f]{16}\.(tar|idx)|\.made-[0-9a-f]{64}\.json"
    ),
    PARTITION_FOLDER: re.compile(r".+-[0-9a-f]{16}\.parquet"),
    ATTACHMENT_FOLDER: re.compile(r".+-[0-9a-f]{16}(\..*)?"),
}

# Errors that the user can resolve: no room, no permission, a file where a folder should be.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_REFUSALS |= {errno.ENOTDIR, errno.EEXIST}


class DiskSite:
    """A data set's folder on a disk, for one build."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def held(self) -> Iterator[Dataset | None]:
        """Lock the folder and yield the data set that is there, if any; UserError for one that was derived.

        If the build inside fails, its files are removed and the old data set stays.
        """
        with build_lock(self.root), old_dataset(self.root, self._tidy) as old:
            yield old

    def _tidy(self) -> None:
        """Remove what the catalogue on disk does not name: the new one, if the build failed after its commit."""
        try:
            metadata = Dataset.read_catalog(self.root).metadata if Dataset.is_at(self.root) else {}
        except UserError:
            return  # damaged: nobody can say what is left over
        collect_leftovers(self.root, metadata)

    @property
    def rows_root(self) -> Path:
        """Where the rows are written before the commit, below PARTITION_FOLDER."""
        return self.root

    def shard_folder(self) -> Path:
        """Where shards are written."""
        folder = self.root / SHARD_FOLDER
        folder.mkdir(exist_ok=True)
        return folder

    def whole_shards(self, old: Dataset) -> set[str]:
        """The old data set's shards that have their size and an index."""
        return {
            name for name, facts in old.metadata["shards"].items() if is_whole(old.shard_path(name), facts["bytes"])
        }

    def commit(self, metadata: dict[str, Any], report: dict[str, Any]) -> None:
        """Commit, and remove what only the old data set or a killed build had."""
        commit(self.root, metadata, report)
        collect_leftovers(self.root, metadata)


@contextmanager
def build_lock(root: Path) -> Iterator[None]:
    """Create the folder and lock it against a second build; UserError when it cannot be a data set's folder.

    A folder that was created here is removed again when the build inside fails.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    with refusal_is_users(root):
        root.mkdir(parents=True, exist_ok=True)
        refuse_foreign(root, [path.name for path in root.iterdir()])
        try:
            lock = file_lock(root / LOCK_FILE, blocking=False).acquire()
        except Timeout:
            raise UserError(f"{root}: another build is at work here; wait until it has ended") from None
    with lock:
        try:
            with refusal_is_users(root):
                yield
        except BaseException:
            if made:
                (root / LOCK_FILE).unlink(missing_ok=True)
                _remove_empty([*(root / folder for folder in OWN_NAMES), *made])
            raise


def commit(root: Path, metadata: dict[str, Any], report: dict[str, Any]) -> None:
    """Replace the catalogue, whose rows are written, then `dataset.json` and the report.

    All three are on disk under temporary names first: a full disk is noticed before the commit.
    """
    content = {
        CATALOG_FILE: catalog_bytes(metadata),
        DATASET_FILE: mirror_of(metadata),
        REPORT_FILE: report_text(report),
    }
    if (root / CATALOG_FILE).exists() and (root / CATALOG_FILE).read_bytes() == content[CATALOG_FILE]:
        del content[CATALOG_FILE]
    with ExitStack() as temporaries:
        new = {name: temporaries.enter_context(aside(root / name)) for name in content}
        for name, path in new.items():
            path.write_bytes(content[name])
            sync(path)
        for folder in OWN_NAMES:
            if (root / folder).is_dir():
                sync(root / folder)
        for name, path in new.items():
            put_in_place(path, root / name)
            sync(root)


def leftovers(root: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Own files that the data set's metadata does not name, and temporary files; never anybody else's files."""
    named = names_of(metadata)
    found = []
    for folder, own_name in {".": None, **OWN_NAMES}.items():
        for path in (root / folder).iterdir() if (root / folder).is_dir() else ():
            unnamed = own_name is not None and own_name.fullmatch(path.name) and path.name not in named
            if unnamed or path.name.startswith(TEMPORARY_PREFIX):
                found.append(path)
    return found


def collect_leftovers(root: Path, metadata: Mapping[str, Any]) -> None:
    """Remove `leftovers`."""
    for path in leftovers(root, metadata):
        path.unlink(missing_ok=True)


def names_of(metadata: Mapping[str, Any]) -> set[str]:
    """File names in a data set's metadata: its own shards, their indices, its rows, its attachments."""
    shards = [name for name, facts in metadata.get("shards", {}).items() if "folder" not in facts]
    attached = {facts["file"] for facts in metadata.get("attachments", {}).values()}
    return {*shards, *map(index_name, shards), *metadata.get("partitions", {}), *attached}


def mirror_of(metadata: Mapping[str, Any]) -> bytes:
    """Content of `dataset.json`, a readable copy of the catalogue's metadata."""
    return (json.dumps(metadata, indent=2, sort_keys=True) + "\n").encode()


def report_text(report: Mapping[str, Any]) -> bytes:
    """Content of `build_report.json`."""
    return (json.dumps(report, indent=2) + "\n").encode()


def refuse_foreign(root: Root, names: Collection[str]) -> None:
    """UserError for a folder that holds anything but a data set: none is mixed into raw images, say."""
    if CATALOG_FILE in names:
        return
    own = {LOCK_FILE, *OWN_NAMES, DATASET_FILE, REPORT_FILE}
    foreign = [name for name in sorted(names) if name not in own and not name.startswith(TEMPORARY_PREFIX)]
    if foreign:
        raise UserError(f"{root}: no data set, yet it holds {foreign[0]}; name a new or an empty folder")


@contextmanager
def old_dataset(root: Root, tidy: Callable[[], None]) -> Iterator[Dataset | None]:
    """Yield the data set that is there, if any; UserError for a derived one. tidy: called if the block fails."""
    old = Dataset.read_catalog(root) if Dataset.is_at(root) else None
    if old is not None and old.metadata["made_by"] != BUILT:
        raise UserError(f"{root}: was derived from another data set; name another folder, or build that one again")
    try:
        yield old
    except BaseException:
        tidy()
        raise


@contextmanager
def refusal_is_users(root: Root) -> Iterator[None]:
    """UserError, one line, for an OSError that the user can resolve."""
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
