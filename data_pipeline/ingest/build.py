"""From declared sources to a data set: discover, scan, curate, plan, write, commit, report.

The commit is one rename of `catalog.parquet`, or one PUT in a store. New shards are written beside the old ones before
it, and old ones are removed after it: killed at any moment, a build leaves the old data set or the new one whole.
"""

import dataclasses
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.catalog import (
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
from data_pipeline.ingest.build_report import make_report, names_alike, several_ranges, unmatched_exclusions
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
from data_pipeline.ingest.regions import region_of
from data_pipeline.ingest.review import Decision, Review, apply_decisions, check_applied, read_review, with_decisions
from data_pipeline.ingest.scan import scan
from data_pipeline.ingest.split_check import check_splits
from data_pipeline.names import Names, shown
from data_pipeline.parallel import TaskMap, Work
from data_pipeline.progress_bar import progress_bar
from data_pipeline.shards.build_files import BUILT, DiskSite
from data_pipeline.shards.build_store import StoreSite
from data_pipeline.shards.store import Root, Store, root_of
from data_pipeline.shards.writer import LAYOUT, PlannedShard, ShardSettings, ShardTask, plan_shards, write_shard
from data_pipeline.sources import RawImage, SourceDeclaration, layouts, survey


@dataclass(frozen=True)
class _Recipe:
    """Everything besides the raw files that decides a data set: as remembered, changed by this build's arguments."""

    sources: tuple[SourceDeclaration, ...]  # in the order of declaration
    settings: ShardSettings
    ratio: Ratio
    exclusions: tuple[Exclusion, ...]
    decisions: tuple[Decision, ...]  # of experts, remembered and new
    review: Review  # what is new

    @property
    def folders(self) -> dict[str, Path]:
        return {declaration.name: declaration.folder for declaration in self.sources}


def build_dataset(
    root: str | Root,
    sources: Sequence[SourceDeclaration],
    *,
    remove: Sequence[str] = (),
    exclude: Path | None = None,
    review: Sequence[Path] | None = None,
    settings: ShardSettings | None = None,
    ratio: Sequence[float] | None = None,
    workers: int = 1,
    progress: bool = True,
    map_tasks: TaskMap | None = None,
) -> dict[str, Any]:
    """Build a data set, or update it; returns the report, which is also in build_report.json.

    root: a folder, or its URL in a store. Sources declared before are remembered and read again; a source of the same
    name is replaced. exclude, settings, ratio: None for the remembered ones, else the defaults; a list of exclusions
    replaces the remembered one. review: experts' decisions, one CSV each, which are added to the remembered ones; an
    empty list forgets these. map_tasks: reads images and writes shards in place of `workers` processes of this
    machine; the bytes are the same. UserError for the user's mistakes; the old data set is then unchanged.
    """
    started, work = time.monotonic(), Work(workers, progress, map_tasks)
    root = root_of(root)
    site = StoreSite(root) if isinstance(root, Store) else DiskSite(Path(os.path.abspath(root)))
    with site.held() as old:
        recipe = _recipe(site.root, old, sources, remove, exclude, review, settings, ratio)
        images, warnings = _discover(recipe, {declaration.name for declaration in sources})
        before = from_table(old.table) if old else []
        samples, remarks = _scan(recipe, images, _known_facts(old, before), work)
        warnings += remarks + _curate(samples, recipe, work)
        if old is not None and old.metadata.get("layout", 1) != LAYOUT:
            warnings.append(f"all shards are new: the old ones were not of layout {LAYOUT}, so the content hash is new")
        if not any(row.kept for row in samples):
            reason = f"{samples[0].source}:{samples[0].path}: {samples[0].reason}"
            raise UserError(f"{site.root}: none of {len(samples)} images can be used (the first: {reason}); mend them")
        standing = {name: old.metadata["shards"][name] for name in site.whole_shards(old)} if old else {}
        planned = plan_shards(samples, recipe.settings)
        shards, written = _write(site.shard_folder(), recipe, planned, standing, before, work)
        check_invariants(to_table(samples), shards)
        metadata = _metadata(recipe, shards, write_rows(site.root, samples), content_hash(samples))
        report = make_report(
            samples,
            written=written,
            kept=len(shards) - written,
            removed=len(set(old.metadata["shards"]) - set(shards)) if old else 0,
            content_hash=metadata["content_hash"],
            warnings=warnings,
            review=recipe.review,
            seconds=time.monotonic() - started,
        )
        site.commit(metadata, report)
    return report


def _recipe(
    root: Root,
    old: Dataset | None,
    sources: Sequence[SourceDeclaration],
    remove: Sequence[str],
    exclude: Path | None,
    review: Sequence[Path] | None,
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
    remembered_exclusions = [Exclusion(**stored) for stored in remembered.get("exclusions", [])]
    decided = [] if review == [] else [Decision(**stored) for stored in remembered.get("decisions", [])]
    new = read_review(review) if review else Review()
    return _Recipe(
        tuple(declared.values()),
        settings or ShardSettings(**remembered.get("settings", {})),
        check_ratio(remembered.get("ratio", DEFAULT_RATIO) if ratio is None else ratio),
        tuple(read_exclusions(exclude) if exclude else remembered_exclusions),
        with_decisions(decided, new.decisions),
        new,
    )


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
    work: Work,
) -> tuple[list[Sample], list[str]]:
    """A row for every raw image, unreadable and hidden ones already excluded; and warnings."""
    paths = [on_disk(declaration.folder, image.path) for declaration, image in images]
    samples = []
    ranges: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (declaration, image), (file, facts) in zip(images, scan(paths, known, work), strict=True):
        identity = file or hashlib.sha256(image.path.encode()).hexdigest()  # a path that is no file has no bytes
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
    """What the old data set knows of raw files, by id; nothing if files are decoded otherwise now."""
    if old is None or old.metadata.get("decoding") != DECODING:
        return {}
    facts = {}
    for row in before:
        problem = row.reason.partition(": ")[2] if row.perceptual_hash is None else ""
        facts[row.id] = ImageFacts(row.width, row.height, row.perceptual_hash, problem)
    return facts


def _curate(samples: list[Sample], recipe: _Recipe, work: Work) -> list[str]:
    """Exclude what is no picture of a cell, what experts exclude, and duplicates; correct labels; returns warnings.

    Experts come before duplicates: they may settle a conflict of labels.
    """
    folders = recipe.folders
    listed = frozenset(declaration.name for declaration in recipe.sources if layouts()[declaration.kind].is_file)
    whole = [row for row in samples if region_of(row.path) is None]  # somebody drew a box round each region
    warnings = exclude_litter(whole, listed, lambda row: on_disk(folders[row.source], row.path), work)
    warnings += unmatched_exclusions(apply_exclusions(samples, recipe.exclusions), samples)
    warnings += check_applied(recipe.review, *apply_decisions(samples, recipe.decisions))
    exclude_duplicates(samples, list(folders))
    return warnings + check_splits(samples, recipe.ratio) + names_alike(samples)


def _write(
    folder: Root,
    recipe: _Recipe,
    planned: Sequence[PlannedShard],
    standing: Mapping[str, dict[str, Any]],
    before: Sequence[Sample],
    work: Work,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Write the missing shards and enter in each sample where its image is.

    standing: whole shards of the old data set. Returns the shard table and how many shards were written.
    """
    stored = {row.id: row for row in before if row.kept}
    by_plan = {facts["plan"]: name for name, facts in standing.items()}
    shards: dict[str, dict[str, Any]] = {}
    for shard in planned:
        if shard.plan in by_plan:
            name = by_plan[shard.plan]
            shards[name] = standing[name]
            for row in shard.samples:
                there = stored[row.id]
                row.shard, row.key = name, row.id
                row.offset, row.size, row.crc32 = there.offset, there.size, there.crc32
    folders = recipe.folders
    tasks = [
        ShardTask(folder, shard, folders[shard.samples[0].source], recipe.settings)
        for shard in planned
        if shard.plan not in by_plan
    ]
    total = sum(len(task.shard.samples) for task in tasks)
    with progress_bar(total, "writing shards", "image", enabled=work.progress and bool(tasks)) as bar:
        for task, written in zip(tasks, work.map(write_shard, tasks), strict=True):
            rows = task.shard.samples
            shards[written.name] = {
                "samples": len(rows),
                "bytes": written.bytes,
                "sha256": written.sha256,
                "plan": task.shard.plan,
            }
            for row, image in zip(rows, written.images, strict=True):
                row.shard, row.key = written.name, row.id
                row.offset, row.size, row.crc32 = image.offset, image.size, image.crc32
            bar.update(len(rows))
    return dict(sorted(shards.items())), len(tasks)


def _metadata(recipe: _Recipe, shards: Mapping[str, Any], partitions: Mapping[str, Any], hashed: str) -> dict[str, Any]:
    """The catalogue's metadata: the same for a data set built at once and one that grew."""
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
        "decisions": [dataclasses.asdict(decision) for decision in recipe.decisions],
        "shards": dict(shards),
        "partitions": dict(partitions),
        "content_hash": hashed,
    }
