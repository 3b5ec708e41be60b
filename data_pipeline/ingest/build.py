"""From declared sources to a data set: discover, scan, curate, plan, write, commit, collect, report.

The commit is one rename of `catalog.parquet`, or in a store one PUT. New shards lie beside the old ones under
names of their own before it, and old ones go after it: whenever a build is killed, the old data set or the
new one is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.catalog import (
    FORMAT_VERSION,
    Dataset,
    Sample,
    check_invariants,
    content_hash,
    from_table,
)
from data_pipeline.errors import UserError
from data_pipeline.ingest.build_report import make_report, several_ranges
from data_pipeline.ingest.build_warnings import names_alike, unmatched_exclusions
from data_pipeline.ingest.curate import (
    DEFAULT_RATIO,
    Exclusion,
    Ratio,
    apply_exclusions,
    check_ratio,
    exclude_duplicates,
    fold_of,
    group_name,
    read_exclusions,
    split_of,
)
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.images import DECODING, ImageFacts
from data_pipeline.ingest.litter import exclude_litter
from data_pipeline.ingest.pixel_range import EIGHT_BITS
from data_pipeline.ingest.scan import scan
from data_pipeline.ingest.split_check import check_splits
from data_pipeline.names import Names, shown
from data_pipeline.parallel import TaskMap, process_map
from data_pipeline.progress_bar import progress_bar
from data_pipeline.shards.build_files import BUILT, DiskSite
from data_pipeline.shards.build_store import StoreSite
from data_pipeline.shards.store import Root, Store, root_of
from data_pipeline.shards.writer import (
    LAYOUT,
    PlannedShard,
    ShardSettings,
    ShardTask,
    StoredImage,
    plan_shards,
    write_shard,
)
from data_pipeline.sources import RawImage, SourceDeclaration, layouts, survey


@dataclass(frozen=True)
class _Recipe:
    """All that decides a data set besides the raw files: what was remembered, changed by what was asked."""

    sources: tuple[SourceDeclaration, ...]  # in the order of declaration
    settings: ShardSettings
    ratio: Ratio
    exclusions: tuple[Exclusion, ...]


def build_dataset(
    root: str | Root,
    sources: Sequence[SourceDeclaration],
    *,
    remove: Sequence[str] = (),
    exclude: Path | None = None,
    settings: ShardSettings | None = None,
    ratio: Sequence[float] | None = None,
    workers: int = 1,
    progress: bool = True,
    map_tasks: TaskMap | None = None,
) -> dict[str, Any]:
    """Build a data set, or bring it up to date; the report (also in build_report.json) comes back.

    root: a folder, or the URL of one in a store.
    Sources declared before are remembered and read again; a name declared again takes the place of the
    old declaration. None for exclude, settings and ratio means as remembered, else the defaults; a list
    of exclusions takes the place of the remembered one. map_tasks: who reads images and writes shards, in
    place of `workers` processes of this machine; the same bytes come of it. UserError for whatever the user
    can mend; the old data set is then as it was.
    """
    started = time.monotonic()
    root = root_of(root)
    site = StoreSite(root) if isinstance(root, Store) else DiskSite(Path(os.path.abspath(root)))
    root = site.root
    with site.held() as old:
        recipe = _recipe(root, old, sources, remove, exclude, settings, ratio)
        images, warnings = _discover(recipe, {declaration.name for declaration in sources})
        before = from_table(old.table) if old else []
        samples, remarks = _scan(recipe, images, _known_facts(old, before), workers, progress, map_tasks)
        warnings += remarks
        folders = {declaration.name: declaration.folder for declaration in recipe.sources}
        listed = frozenset(declaration.name for declaration in recipe.sources if layouts()[declaration.kind].is_file)
        warnings += exclude_litter(
            samples, listed, lambda row: on_disk(folders[row.source], row.path), workers, progress, map_tasks
        )
        warnings += _curate(samples, recipe)
        if old is not None and old.metadata.get("layout", 1) != LAYOUT:
            warnings.append(f"all shards are new: the old ones were not of layout {LAYOUT}, so the content hash is new")
        if not any(row.kept for row in samples):
            reason = f"{samples[0].source}:{samples[0].path}: {samples[0].reason}"
            raise UserError(f"{root}: none of {len(samples)} images can be used (the first: {reason}); mend them")
        planned = plan_shards(samples, recipe.settings)
        standing = _standing_shards(site, old) if old else {}
        shards, written = _write(site.shard_folder(), recipe, planned, standing, before, workers, progress, map_tasks)
        metadata = _metadata(recipe, shards, content_hash(samples))
        check_invariants(samples, shards)
        removed = set(old.metadata["shards"]) - set(shards) if old else set()
        report = make_report(
            samples,
            written=written,
            kept=len(shards) - written,
            removed=len(removed),
            content_hash=metadata["content_hash"],
            warnings=warnings,
            seconds=time.monotonic() - started,
        )
        site.commit(samples, metadata, report)
    return report


def _recipe(
    root: Root,
    old: Dataset | None,
    sources: Sequence[SourceDeclaration],
    remove: Sequence[str],
    exclude: Path | None,
    settings: ShardSettings | None,
    ratio: Sequence[float] | None,
) -> _Recipe:
    remembered: Mapping[str, Any] = old.metadata if old else {}
    before = map(SourceDeclaration.from_json, remembered.get("sources", []))
    declared = {declaration.name: declaration for declaration in before}
    names = [declaration.name for declaration in sources]
    for name in names:
        if names.count(name) > 1 or name in remove:
            raise UserError(f"source {name!r} is named twice in this command; name each source once")
    for name in remove:
        if declared.pop(name, None) is None:
            there, hint = ", ".join(declared) or "none", Names(declared).hint(name)
            raise UserError(f"{root}: no source '{shown(name)}' to remove{hint}; the sources are: {there}")
    for declaration in sources:
        absolute = dataclasses.replace(declaration, root=Path(os.path.abspath(declaration.root)))
        declared[declaration.name] = absolute.as_remembered(declared.get(declaration.name))
    if not declared:
        raise UserError(f"{root}: no source declared; name at least one folder or table of images")
    if settings is None:
        settings = ShardSettings(**remembered.get("settings", {}))
    if ratio is None:
        ratio = remembered.get("ratio", DEFAULT_RATIO)
    exclusions = (
        read_exclusions(exclude)
        if exclude is not None
        else [Exclusion(**stored) for stored in remembered.get("exclusions", [])]
    )
    return _Recipe(tuple(declared.values()), settings, check_ratio(ratio), tuple(exclusions))


def _discover(recipe: _Recipe, asked: set[str]) -> tuple[list[tuple[SourceDeclaration, RawImage]], list[str]]:
    images: list[tuple[SourceDeclaration, RawImage]] = []
    warnings: list[str] = []
    for declaration in recipe.sources:
        if declaration.name not in asked and not declaration.root.exists():
            raise UserError(
                f"{declaration.root}: the images of source {declaration.name!r} are gone; bring them back, "
                f"declare the source again where they are now, or take it out with remove={declaration.name}"
            )
        found = survey(declaration)
        images += [(declaration, image) for image in found.images]
        warnings += found.warnings
    return images, warnings


def _scan(
    recipe: _Recipe,
    images: Sequence[tuple[SourceDeclaration, RawImage]],
    known: Mapping[str, ImageFacts],
    workers: int,
    progress: bool,
    map_tasks: TaskMap | None,
) -> tuple[list[Sample], list[str]]:
    """A row for every image that came in, the unreadable and the hidden already excluded; and remarks on new ones."""
    paths = [on_disk(declaration.folder, image.path) for declaration, image in images]
    samples = []
    ranges: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (declaration, image), file in zip(images, scan(paths, known, workers, progress, map_tasks), strict=True):
        facts = file.facts
        identity = file.id or hashlib.sha256(image.path.encode()).hexdigest()  # what is no file has its name alone
        group = group_name(declaration.name, image.group, identity)
        row = Sample(
            id=identity,
            source=declaration.name,
            domain=image.domain,
            path=image.path,
            source_label=image.source_label,
            cell_type=image.cell_type,
            group=group,
            split=split_of(group, recipe.ratio),
            fold=fold_of(group),
            perceptual_hash=facts.perceptual_hash,
            width=facts.width,
            height=facts.height,
            microns_per_pixel=image.microns_per_pixel,
        )
        if facts.problem:
            row.exclude("unreadable", facts.problem)
        elif image.hidden:
            row.exclude("hidden file")
        elif facts.bits != EIGHT_BITS:
            ranges[declaration.name][facts.bits].append(image.path)
        samples.append(row)
    return samples, [several_ranges(name, paths) for name, paths in ranges.items() if len(paths) > 1]


def _known_facts(old: Dataset | None, before: Sequence[Sample]) -> dict[str, ImageFacts]:
    """What the data set remembers of raw files, by id, unless they are decoded otherwise now."""
    if old is None or old.metadata.get("decoding") != DECODING:
        return {}
    return {row.id: _remembered_facts(row) for row in before}


def _remembered_facts(row: Sample) -> ImageFacts:
    problem = row.reason.partition(": ")[2] if row.perceptual_hash is None else ""
    return ImageFacts(row.width, row.height, row.perceptual_hash, problem)


def _curate(samples: list[Sample], recipe: _Recipe) -> list[str]:
    """Expert's list first: an expert may settle a conflict of labels by taking one side out."""
    unmatched = apply_exclusions(samples, recipe.exclusions)
    exclude_duplicates(samples, [declaration.name for declaration in recipe.sources])
    return unmatched_exclusions(unmatched, samples) + check_splits(samples, recipe.ratio) + names_alike(samples)


def _write(
    folder: Root,
    recipe: _Recipe,
    planned: Sequence[PlannedShard],
    standing: Mapping[str, tuple[str, dict[str, Any]]],
    before: Sequence[Sample],
    workers: int,
    progress: bool,
    map_tasks: TaskMap | None,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Write the shards that are not there yet and enter in each sample where it lies.

    The shard table {name: {samples, bytes, sha256, plan}}, and how many were written.
    """
    stored = {row.id: row for row in before if row.kept}
    shards: dict[str, dict[str, Any]] = {}
    tasks = []
    raw_folders = {declaration.name: declaration.folder for declaration in recipe.sources}
    for shard in planned:
        if shard.plan not in standing:
            tasks.append(ShardTask(folder, shard, raw_folders[shard.samples[0].source], recipe.settings))
            continue
        name, facts = standing[shard.plan]
        shards[name] = facts
        for row in shard.samples:
            there = stored[row.id]
            assert there.offset is not None
            assert there.size is not None
            assert there.crc32 is not None
            _enter(row, name, StoredImage(there.offset, there.size, there.crc32))
    writing = map_tasks or partial(process_map, workers=workers)
    total = sum(len(task.shard.samples) for task in tasks)
    with progress_bar(total, "writing shards", "image", enabled=progress and bool(tasks)) as bar:
        for task, result in zip(tasks, writing(write_shard, tasks), strict=True):
            shards[result.name] = {
                "samples": len(task.shard.samples),
                "bytes": result.bytes,
                "sha256": result.sha256,
                "plan": task.shard.plan,
            }
            for row, image in zip(task.shard.samples, result.images, strict=True):
                _enter(row, result.name, image)
            bar.update(len(task.shard.samples))
    return dict(sorted(shards.items())), len(tasks)


def _enter(row: Sample, shard: str, image: StoredImage) -> None:
    row.shard, row.key = shard, row.id
    row.offset, row.size, row.crc32 = image.offset, image.size, image.crc32


def _standing_shards(site: DiskSite | StoreSite, old: Dataset) -> dict[str, tuple[str, dict[str, Any]]]:
    """Shards of the old data set that are there whole, by plan; the others are written anew."""
    whole = site.whole_shards(old)
    return {facts["plan"]: (name, facts) for name, facts in old.metadata["shards"].items() if name in whole}


def _metadata(recipe: _Recipe, shards: Mapping[str, Any], hashed: str) -> dict[str, Any]:
    """What the catalogue carries besides its rows. Nothing in it tells how many builds led here."""
    return {
        "format_version": FORMAT_VERSION,
        "decoding": DECODING,
        "layout": LAYOUT,
        "made_by": BUILT,
        "parents": [],
        "sources": [declaration.to_json() for declaration in recipe.sources],
        "settings": dataclasses.asdict(recipe.settings),
        "ratio": list(recipe.ratio),
        "exclusions": [dataclasses.asdict(exclusion) for exclusion in recipe.exclusions],
        "shards": dict(shards),
        "content_hash": hashed,
    }
