"""A data set derived from another: some images by reference to the parent's shards, others newly made.

Many processes make one data set. A shard is made by one rank and entered in a journal when it is on disk. The commit
is one rename, as a build's. Killed at any moment, the old data set or the new one is whole, and finished shards are
kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.attachments import attachment_location, copy_attachment, describe_attachments
from data_pipeline.catalog import (
    CATALOG_SCHEMA,
    FORMAT_VERSION,
    Dataset,
    Sample,
    check_invariants,
    content_hash,
    from_table,
    to_table,
    write_rows,
)
from data_pipeline.errors import UserError
from data_pipeline.ingest.build_report import Tally, make_report
from data_pipeline.ingest.curate import settle
from data_pipeline.progress_bar import progress_bar
from data_pipeline.shards.build_files import (
    BUILT,
    REPORT_FILE,
    build_lock,
    collect_leftovers,
    commit,
    leftovers,
    refusal_is_users,
)
from data_pipeline.shards.location import SHARD_FOLDER, check_shards, holder_of, reference
from data_pipeline.shards.made import Render, is_whole, make_shard, read_made_shard
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.writer import LAYOUT, PlannedShard, ShardSettings, plan_shards

# The location of an image in a row that has none.
_NOWHERE: dict[str, Any] = {"shard": "", "key": "", "offset": None, "size": None, "crc32": None}
_Shards = dict[str, dict[str, Any]]  # entries of shards by name, as in the metadata of a data set


def derive_dataset(
    root: Path,
    parent: Dataset,
    *,
    kept: Sequence[Sample],
    made: Sequence[Sample],
    render: Render,
    made_by: dict[str, Any],
    settings: ShardSettings,
    attachments: Mapping[str, Path] | None = None,
    warnings: Sequence[str] = (),
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Derive a data set, or resume an interrupted derivation; returns the report on every rank.

    kept: rows of the parent, by reference, excluded ones too. made: templates of new rows; a template's id is the
    SHA-256, hex, of what decides the image. The new row has the SHA-256 of the stored bytes as its id and its own size
    in pixels. Equal images are settled as duplicates of raw files are.
    render: makes the images of one shard, in the order of its samples. made_by: what made the images, as JSON; with
    another value every image is made again. attachments: name -> file, copied (`Dataset.attachment_path`). warnings:
    lines for the report. barrier: returns when every rank has called it.
    An earlier derived data set is replaced in one rename, or kept if it has the same recipe. webdataset, which reads
    whole shards, finds images in the parent's shards that are not kept. UserError for a user's mistake.
    """
    started = time.monotonic()
    root = Path(os.path.abspath(root))
    recipe = make_recipe(parent, kept, made, made_by, settings, attachments or {})
    # Every rank looks before any writes (the first barrier), so all take the same branch.
    old = _old_dataset(root, recipe)
    if old is not None and _is_finished(root, old, recipe):
        return _report(from_table(old.table), old.metadata, warnings, 0, 0, started)
    # A rank that fails leaves the others at a barrier: the launcher of the ranks ends them.
    with build_lock(root) if rank == 0 else refusal_is_users(root):
        folder = root / SHARD_FOLDER
        own = _own_shards(old) if old is not None and _made_shards_stand(old, recipe) else None
        written = 0
        if rank == 0:
            folder.mkdir(exist_ok=True)
            if own is None:
                written = sum(read_made_shard(folder, shard) is None for shard in recipe.planned)
        barrier()  # the folder exists, is locked, and its journals are counted
        if own is None:
            _make_missing(folder, recipe, render, rank, world_size, progress and rank == 0)
        barrier()  # every shard and its journal is on disk
        if rank == 0:
            rows, own = (from_table(old.table), own) if old and own is not None else _collect_rows(folder, recipe)
            report = _commit(root, recipe, rows, own, old, warnings, written, started)
        barrier()  # the data set is in place
    return report if rank == 0 else json.loads((root / REPORT_FILE).read_text())


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a derived data set."""

    parent: Dataset
    kept: tuple[Sample, ...]
    planned: tuple[PlannedShard, ...]
    made_by: dict[str, Any]
    settings: ShardSettings
    attachments: dict[str, dict[str, Any]]  # as in the metadata
    files: Mapping[str, Path]  # the attachments' own files
    plan: str  # hash of all of it; does not depend on the folders of parent and data set

    def referred(self) -> _Shards:
        """The parent's entries of the shards with kept rows."""
        names = sorted({row.shard for row in self.kept if row.kept})
        return {name: self.parent.metadata["shards"][name] for name in names}

    def referred_from(self, root: Path) -> _Shards:
        """The same entries in a data set at `root`: each names the folder of its shard."""
        return {
            name: {**facts, "folder": reference(root, holder_of(self.parent.root, facts))}
            for name, facts in self.referred().items()
        }

    def parents(self, root: Path) -> list[dict[str, str]]:
        """`parents` of the derived data set's metadata: path (relative to `root` where it can be) and content hash."""
        return [{"path": reference(root, self.parent.root), "content_hash": self.parent.content_hash}]


def make_recipe(
    parent: Dataset,
    kept: Sequence[Sample],
    made: Sequence[Sample],
    made_by: dict[str, Any],
    settings: ShardSettings,
    attachments: Mapping[str, Path],
) -> Recipe:
    """The recipe of a derived data set: `kept` rows of the parent, and templates `made` of new rows.

    ValueError for an invalid template, UserError for an attachment that cannot be read.
    """
    if len({row.id for row in made}) < len(made):
        raise ValueError("two templates share a recipe id")
    for row in made:
        if not re.fullmatch(r"[0-9a-f]{64}", row.id) or not row.kept:
            raise ValueError(f"{row.path}: a template is kept and its id is 64 hexadecimal digits, not {row.id!r}")
    described = describe_attachments(attachments)
    made_with = [made_by, dataclasses.asdict(settings)]
    templates = [dataclasses.replace(row, **_NOWHERE) for row in made]
    planned = tuple(
        dataclasses.replace(shard, plan=_hash([*made_with, shard.plan])) for shard in plan_shards(templates, settings)
    )
    rows = sorted(_hash([getattr(row, name) for name in CATALOG_SCHEMA.names]) for row in kept)
    plan = _hash([*made_with, described, parent.content_hash, rows, [shard.plan for shard in planned]])
    return Recipe(parent, tuple(kept), planned, made_by, settings, described, attachments, plan)


def _hash(value: Any) -> str:
    """SHA-256, hex, of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=bytes.hex).encode()).hexdigest()


def _old_dataset(root: Path, recipe: Recipe) -> Dataset | None:
    """The derived data set at `root`, or None. UserError when something else is there."""
    holders = {recipe.parent.root, *(holder_of(recipe.parent.root, facts) for facts in recipe.referred().values())}
    if os.path.realpath(root) in [os.path.realpath(holder) for holder in holders if isinstance(holder, Path)]:
        raise UserError(f"{root}: holds images that this data set is to be derived from; name another folder")
    if not (root / CATALOG_FILE).exists():
        return None
    old = Dataset.read_catalog(root)
    if old.metadata["made_by"] == BUILT:
        raise UserError(f"{root}: holds a data set built from raw images; name another folder for the derived one")
    return old


def _own_shards(old: Dataset) -> _Shards:
    return {name: facts for name, facts in old.metadata["shards"].items() if "folder" not in facts}


def _made_shards_stand(old: Dataset, recipe: Recipe) -> bool:
    """Whether the old data set has all images of this recipe."""
    return old.metadata["plan"] == recipe.plan and all(
        is_whole(old.shard_path(name), facts["bytes"]) for name, facts in _own_shards(old).items()
    )


def _is_finished(root: Path, old: Dataset, recipe: Recipe) -> bool:
    """Whether nothing is left to do, including the cleanup after a commit."""
    return (
        _made_shards_stand(old, recipe)
        and old.metadata["shards"] == _own_shards(old) | recipe.referred_from(root)
        and old.metadata["parents"] == recipe.parents(root)
        and all(attachment_location(root, facts).is_file() for facts in recipe.attachments.values())
        and not leftovers(root, old.metadata)
    )


def _make_missing(folder: Path, recipe: Recipe, render: Render, rank: int, world_size: int, progress: bool) -> None:
    """Make this rank's shards that have no journal."""
    mine = recipe.planned[rank::world_size]
    missing = [shard for shard in mine if read_made_shard(folder, shard) is None]
    total, left = (sum(len(shard.samples) for shard in shards) for shards in (mine, missing))
    with progress_bar(total, "making images", "image", initial=total - left, enabled=progress) as bar:
        for shard in missing:
            make_shard(folder, shard, recipe.settings, render, bar.update)


def _collect_rows(folder: Path, recipe: Recipe) -> tuple[list[Sample], _Shards]:
    """All rows of the new data set and the entries of its own shards, from the journals of all ranks."""
    rows = [dataclasses.replace(row) for row in recipe.kept]
    shards: _Shards = {}
    for shard in recipe.planned:
        written = read_made_shard(folder, shard)
        if written is None:
            raise RuntimeError(f"{folder}: the shard {shard.stem} was not made by its rank")
        shards[written.name] = {
            "samples": len({image.id for image in written.images}),
            "bytes": written.bytes,
            "sha256": written.sha256,
            "plan": shard.plan,
        }
        for template, image in zip(shard.samples, written.images, strict=True):
            stored = dataclasses.asdict(image)
            rows.append(dataclasses.replace(template, **stored, shard=written.name, key=image.id))
    _exclude_equal(rows)
    return rows, shards


def _exclude_equal(rows: list[Sample]) -> None:
    """Keep one of equal images, by the rules for raw files; the report shows a generator that repeats itself."""
    by_id: dict[str, list[Sample]] = defaultdict(list)
    for row in rows:
        if row.kept:
            by_id[row.id].append(row)
    rank = {source: position for position, source in enumerate(sorted({row.source for row in rows}))}
    for equal in (group for group in by_id.values() if len(group) > 1):
        settle(equal, rank)
        for row in (row for row in equal if not row.kept):
            for name, value in _NOWHERE.items():
                setattr(row, name, value)


def _commit(
    root: Path,
    recipe: Recipe,
    rows: list[Sample],
    own: _Shards,
    old: Dataset | None,
    warnings: Sequence[str],
    written: int,
    started: float,
) -> dict[str, Any]:
    """Put the new data set in place, and remove what only the old one or an interrupted derivation had."""
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "layout": LAYOUT,
        "made_by": recipe.made_by,
        "plan": recipe.plan,
        "parents": recipe.parents(root),
        "settings": dataclasses.asdict(recipe.settings),
        "attachments": recipe.attachments,
        "shards": own | recipe.referred_from(root),
        "partitions": write_rows(root, rows),
        "content_hash": content_hash(rows),
    }
    check_invariants(to_table(rows), metadata["shards"])
    check_shards(root, metadata["shards"])
    for name, path in recipe.files.items():
        copy_attachment(path, root, recipe.attachments[name])
    removed = len(set(_own_shards(old)) - set(own)) if old else 0
    report = _report(rows, metadata, warnings, written, removed, started)
    commit(root, metadata, report)
    collect_leftovers(root, metadata)
    return report


def _report(
    rows: list[Sample],
    metadata: Mapping[str, Any],
    warnings: Sequence[str],
    written: int,
    removed: int,
    started: float,
) -> dict[str, Any]:
    """As a build's; the parent's shards count as kept."""
    return make_report(
        Tally([to_table(rows)]),
        written=written,
        kept=len(metadata["shards"]) - written,
        removed=removed,
        content_hash=metadata["content_hash"],
        warnings=warnings,
        seconds=time.monotonic() - started,
    )
