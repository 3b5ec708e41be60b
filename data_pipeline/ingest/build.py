"""From declared sources to a data set: discover, scan, curate, plan, write, commit, report.

The commit is one rename of `catalog.parquet`, or one PUT in a store. New shards and rows are written beside the old
ones before it, and old ones are removed after it: killed at any moment, a build leaves the old data set or the new one
whole. Rows are columns, source by source (`source_rows.py`).
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.catalog import CATALOG_SCHEMA, Dataset, Sample, check_invariants
from data_pipeline.errors import UserError
from data_pipeline.ingest.build_report import Tally, make_report, names_alike, several_ranges, unmatched_exclusions
from data_pipeline.ingest.curate import apply_exclusions, concerned
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.known_facts import KnownFacts
from data_pipeline.ingest.litter import exclude_litter, may_be_litter
from data_pipeline.ingest.recipe import Recipe, make_metadata, make_recipe
from data_pipeline.ingest.review import apply_decisions, check_applied
from data_pipeline.ingest.scan_source import scan_source
from data_pipeline.ingest.source_rows import SourceRows, change_rows, exclude_duplicates, find_rows
from data_pipeline.ingest.split_check import GROUP_COLUMNS, check_splits
from data_pipeline.ingest.write_shards import write_shards
from data_pipeline.parallel import TaskMap, Work
from data_pipeline.partitions import write_partition
from data_pipeline.sample import hash_of_columns
from data_pipeline.shards.build_files import DiskSite
from data_pipeline.shards.build_store import StoreSite
from data_pipeline.shards.store import Root, Store, root_of
from data_pipeline.shards.writer import LAYOUT, ShardSettings
from data_pipeline.sources import SourceDeclaration, layouts, survey
from data_pipeline.sources.raw_images import RawImages


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
        recipe = make_recipe(site.root, old, sources, remove, exclude, review, settings, ratio)
        rows, warnings = _scan_sources(recipe, {declaration.name for declaration in sources}, old, work)
        warnings += _curate(rows, recipe, work)
        if old is not None and old.metadata.get("layout", 1) != LAYOUT:
            warnings.append(f"all shards are new: the old ones were not of layout {LAYOUT}, so the content hash is new")
        if not any(each.kept.any() for each in rows):
            first = rows[0].samples(np.arange(1))[0]
            raise UserError(
                f"{site.root}: none of {sum(map(len, rows))} images can be used (the first: {first.source}:"
                f"{first.path}: {first.reason}); mend them"
            )
        standing = {name: old.metadata["shards"][name] for name in site.whole_shards(old)} if old else {}
        tally, written = Tally(), 0
        shards, partitions = dict[str, Any](), dict[str, Any]()
        while rows:  # a source's rows leave the memory when they are written
            found, new, entry = _write_source(rows.pop(0), site, recipe, old, standing, work, tally)
            shards, partitions, written = shards | found, partitions | entry, written + new
        written_rows = Dataset(site.rows_root, {"shards": {}, "partitions": partitions})
        hashed = hash_of_columns(written_rows.selected)
        metadata = make_metadata(recipe, dict(sorted(shards.items())), partitions, hashed)
        report = make_report(
            tally,
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


def _write_source(
    rows: SourceRows,
    site: DiskSite | StoreSite,
    recipe: Recipe,
    old: Dataset | None,
    standing: Mapping[str, dict[str, Any]],
    work: Work,
    tally: Tally,
) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Write the shards and the rows of a source, and count them.

    Returns its part of the shard table, how many shards were written, and the entry of its file of rows.
    """
    shards, written = write_shards(rows, site.shard_folder(), recipe, old, standing, work)
    entry = write_partition(site.rows_root, rows.source, _checked(rows, shards, tally), CATALOG_SCHEMA)
    return shards, written, entry


def _checked(rows: SourceRows, shards: Iterable[str], tally: Tally) -> Iterator[pa.Table]:
    """All rows of a source, in parts, counted; AssertionError when they contradict each other."""
    for part in rows.tables():
        check_invariants(part, shards)
        tally.add(part)
        yield part


def _scan_sources(
    recipe: Recipe, asked: set[str], old: Dataset | None, work: Work
) -> tuple[list[SourceRows], list[str]]:
    """The rows of every source, unreadable and hidden images already excluded; and warnings."""
    surveys, warnings = [], []
    for declaration in recipe.sources:
        if declaration.name not in asked and not declaration.root.exists():
            raise UserError(
                f"{declaration.root}: the images of source {declaration.name!r} are gone; bring them back, "
                f"declare the source again where they are now, or take it out with remove={declaration.name}"
            )
        found = survey(declaration)
        images = found.images if isinstance(found.images, RawImages) else RawImages.of(found.images).by_path()
        surveys.append((declaration, images))
        warnings += found.warnings
    rows = []
    for declaration, images in surveys:
        each, ranges = scan_source(declaration, images, recipe.ratio, KnownFacts(old, declaration.name), work)
        rows.append(each)
        if len(ranges) > 1:
            warnings.append(several_ranges(declaration.name, ranges))
    return rows, warnings


def _curate(rows: Sequence[SourceRows], recipe: Recipe, work: Work) -> list[str]:
    """Exclude what is no picture of a cell, what experts exclude, and duplicates; correct labels; returns warnings.

    Experts come before duplicates: they may settle a conflict of labels.
    """
    folders, warnings = recipe.folders, list[str]()
    listed = frozenset(declaration.name for declaration in recipe.sources if layouts()[declaration.kind].is_file)

    def where(sample: Sample) -> Path:
        return on_disk(folders[sample.source], sample.path)

    def paths() -> Iterator[str]:
        return (path for each in rows for part in each.paths() for path in part)

    for each in rows:
        doubtful = may_be_litter(each.paths)
        warnings += change_rows([each], doubtful, lambda samples: exclude_litter(samples, listed, where, work))
    named, ids = concerned(paths, recipe.exclusions), {exclusion.id for exclusion in recipe.exclusions}
    unmatched = change_rows(
        rows, find_rows(rows, named, ids), lambda samples: apply_exclusions(samples, recipe.exclusions, folders)
    )
    warnings += unmatched_exclusions(unmatched, paths)
    decided = find_rows(rows, (), {decision.id for decision in recipe.decisions})
    applied = change_rows(rows, decided, lambda samples: apply_decisions(samples, recipe.decisions))
    warnings += check_applied(recipe.review, *applied)
    exclude_duplicates(rows)
    warnings += check_splits((part.select(GROUP_COLUMNS) for each in rows for part in each.tables()), recipe.ratio)
    domains = (name for each in rows for name in each.images["domain"].unique().to_pylist())
    return warnings + names_alike({"source": folders, "domain": domains})
