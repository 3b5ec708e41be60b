"""A data set from another: some images by reference to the parent's shards, others made anew (contract C1).

Many processes make one data set: a shard is made by one of them, and noted in a journal when it is on disk.
The commit is one rename, as a build's. Killed at any moment, the old data set or the new one is whole, and
the shards that were made are not made again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.attachments import attachment_location, copy_attachment
from data_pipeline.banks.derive_recipe import NOWHERE, Recipe, make_recipe
from data_pipeline.catalog import (
    FORMAT_VERSION,
    Dataset,
    Sample,
    check_invariants,
    content_hash,
    from_table,
)
from data_pipeline.errors import UserError
from data_pipeline.ingest.build_report import make_report
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
from data_pipeline.shards.location import SHARD_FOLDER, check_shards, holder_of
from data_pipeline.shards.made import Render, is_whole, make_shard, read_made_shard
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.writer import ShardSettings


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
    """Derive a data set, or go on where a derivation was killed; the report comes back in every process.

    kept: rows of the parent, taken over by reference, the excluded ones too.
    made: templates of new rows. The id of a template is a recipe id, 64 hexadecimal digits: the SHA-256 of
    what decides the image. The new row has in its place the SHA-256 of the stored bytes and its own size
    in pixels; its perceptual hash is the template's, that of the raw picture. Equal images are settled as duplicates
    of raw files are.
    render: makes the images of one shard, uint8 RGB [H, W, 3], in the order of its samples.
    made_by: what made the images, as JSON; with another one every image is made again.
    attachments: name -> file that is copied into the data set (`Dataset.attachment_path`).
    warnings: what the report says of the recipe.
    rank, world_size, barrier: of the processes that derive together; barrier returns when all have called it.

    A derived data set that is there already is replaced in one rename; one that this recipe made is left as it
    is. Readers of whole shards (webdataset) meet in a parent's shard also those images that are not kept.
    UserError for whatever the user can mend.
    """
    started = time.monotonic()
    root = Path(os.path.abspath(root))
    recipe = make_recipe(parent, kept, made, made_by, settings, attachments or {})
    # Every process looks before any writes (the first barrier), so all come to the same end: here, or below.
    old = _old_dataset(root, recipe)
    if old is not None and _is_finished(root, old, recipe):
        rows = from_table(old.table)
        return _report(rows, old.metadata, warnings, written=0, removed=0, started=started)
    # A process that fails leaves the others at a barrier: whoever started them together ends them together.
    with build_lock(root) if rank == 0 else refusal_is_users(root):
        folder = root / SHARD_FOLDER
        stands = old is not None and _made_shards_stand(old, recipe)
        missing = 0
        if rank == 0:
            folder.mkdir(exist_ok=True)
            if not stands:
                missing = sum(read_made_shard(folder, shard) is None for shard in recipe.planned)
        barrier()  # the folder is there, held against other builds, and its journals are counted
        if not stands:
            _make_missing(folder, recipe, render, rank, world_size, progress and rank == 0)
        barrier()  # every shard and its journal is on disk
        if rank == 0:
            if old is not None and stands:
                rows, own = from_table(old.table), _own_shards(old)
            else:
                rows, own = _collect_rows(folder, recipe)
            report = _commit(root, recipe, rows, own, old, warnings, missing, started)
        barrier()  # the data set is there for all
    if rank != 0:
        report = json.loads((root / REPORT_FILE).read_text())
    return report


def _old_dataset(root: Path, recipe: Recipe) -> Dataset | None:
    """The derived data set that is to be replaced, if any; UserError when something else is in its place."""
    holders = {recipe.parent.root, *(holder_of(recipe.parent.root, facts) for facts in recipe.referred().values())}
    if os.path.realpath(root) in [os.path.realpath(holder) for holder in holders if isinstance(holder, Path)]:
        raise UserError(f"{root}: holds images that this data set is to be derived from; name another folder")
    if not (root / CATALOG_FILE).exists():
        return None
    old = Dataset.read_catalog(root)
    if old.metadata["made_by"] == BUILT:
        raise UserError(f"{root}: holds a data set built from raw images; name another folder for the derived one")
    return old


def _own_shards(old: Dataset) -> dict[str, dict[str, Any]]:
    return {name: facts for name, facts in old.metadata["shards"].items() if "folder" not in facts}


def _made_shards_stand(old: Dataset, recipe: Recipe) -> bool:
    """Whether the old data set has this recipe's images whole; where its parent lies may still have changed."""
    return old.metadata["plan"] == recipe.plan and all(
        is_whole(old.shard_path(name), facts["bytes"]) for name, facts in _own_shards(old).items()
    )


def _is_finished(root: Path, old: Dataset, recipe: Recipe) -> bool:
    """Whether nothing is left to do, down to the tidying after a commit."""
    return (
        _made_shards_stand(old, recipe)
        and old.metadata["shards"] == _own_shards(old) | recipe.referred_from(root)
        and old.metadata["parents"] == recipe.parents(root)
        and all(attachment_location(root, facts).is_file() for facts in recipe.attachments.values())
        and not leftovers(root, old.metadata)
    )


def _make_missing(folder: Path, recipe: Recipe, render: Render, rank: int, world_size: int, progress: bool) -> None:
    """Make this process's shards that have no journal yet."""
    mine = recipe.planned[rank::world_size]
    missing = [shard for shard in mine if read_made_shard(folder, shard) is None]
    total, left = (sum(len(shard.samples) for shard in shards) for shards in (mine, missing))
    with progress_bar(total, "making images", "image", initial=total - left, enabled=progress) as bar:
        for shard in missing:
            make_shard(folder, shard, recipe.settings, render, bar.update)


def _collect_rows(folder: Path, recipe: Recipe) -> tuple[list[Sample], dict[str, dict[str, Any]]]:
    """All rows of the new data set, and the entries of its own shards, from the journals of all processes."""
    rows = [dataclasses.replace(row) for row in recipe.kept]
    shards: dict[str, dict[str, Any]] = {}
    for shard in recipe.planned:
        written = read_made_shard(folder, shard)
        if written is None:
            raise RuntimeError(f"{folder}: the shard {shard.stem} was not made by the process whose part it is")
        shards[written.name] = {
            "samples": len({image.id for image in written.images}),
            "bytes": written.bytes,
            "sha256": written.sha256,
            "plan": shard.plan,
        }
        for template, image in zip(shard.samples, written.images, strict=True):
            there = dataclasses.asdict(image)
            rows.append(dataclasses.replace(template, **there, shard=written.name, key=image.id))
    _exclude_equal(rows)
    return rows, shards


def _exclude_equal(rows: list[Sample]) -> None:
    """Leave one of equal images, by the rules for raw files; a generator that makes all alike shows in the report."""
    by_id: dict[str, list[Sample]] = defaultdict(list)
    for row in rows:
        if row.kept:
            by_id[row.id].append(row)
    rank = {source: position for position, source in enumerate(sorted({row.source for row in rows}))}
    for equal in by_id.values():
        if len(equal) > 1:
            settle(equal, rank)
            for row in equal:
                if not row.kept:
                    for name, value in NOWHERE.items():
                        setattr(row, name, value)


def _commit(
    root: Path,
    recipe: Recipe,
    rows: list[Sample],
    own: dict[str, dict[str, Any]],
    old: Dataset | None,
    warnings: Sequence[str],
    written: int,
    started: float,
) -> dict[str, Any]:
    """Put the new data set in place, and remove what only the old one or a killed derivation had."""
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "made_by": recipe.made_by,
        "plan": recipe.plan,
        "parents": recipe.parents(root),
        "settings": dataclasses.asdict(recipe.settings),
        "attachments": recipe.attachments,
        "shards": own | recipe.referred_from(root),
        "content_hash": content_hash(rows),
    }
    check_invariants(rows, metadata["shards"])
    check_shards(root, metadata["shards"])
    for name, path in recipe.files.items():
        copy_attachment(path, root, recipe.attachments[name])
    removed = set(_own_shards(old)) - set(own) if old else set()
    report = _report(rows, metadata, warnings, written=written, removed=len(removed), started=started)
    commit(root, rows, metadata, report)
    collect_leftovers(root, metadata)
    return report


def _report(
    rows: list[Sample],
    metadata: Mapping[str, Any],
    warnings: Sequence[str],
    *,
    written: int,
    removed: int,
    started: float,
) -> dict[str, Any]:
    """As a build's; the parent's shards count among the kept."""
    return make_report(
        rows,
        written=written,
        kept=len(metadata["shards"]) - written,
        removed=removed,
        content_hash=metadata["content_hash"],
        warnings=warnings,
        seconds=time.monotonic() - started,
    )
