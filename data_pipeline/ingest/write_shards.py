"""The shards of one source: planned, compared with those that are there, written where they are missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from data_pipeline.catalog import Dataset
from data_pipeline.ids import Ids
from data_pipeline.ingest.recipe import Recipe
from data_pipeline.ingest.source_rows import Places, SourceRows
from data_pipeline.parallel import Work
from data_pipeline.progress_bar import progress_bar
from data_pipeline.shards.reader import PLACE_COLUMNS, places_of
from data_pipeline.shards.store import Root
from data_pipeline.shards.writer import ShardTask, plan_shard, shard_stem, trie_leaves, write_shard


@dataclass(frozen=True)
class _Planned:
    """A shard that is wanted."""

    stem: str
    rows: Places  # ordered by id
    plan: str


def write_shards(
    rows: SourceRows,
    folder: Root,
    recipe: Recipe,
    old: Dataset | None,
    standing: Mapping[str, dict[str, Any]],
    work: Work,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Write the missing shards of a source, and enter in its rows where each image is.

    standing: whole shards of the old data set. Returns the source's part of the shard table, and how many were written.
    """
    by_plan = {facts["plan"]: name for name, facts in standing.items()}
    planned = list(_planned(rows, recipe))
    there = {by_plan[shard.plan]: shard.rows for shard in planned if shard.plan in by_plan}
    missing = [shard for shard in planned if shard.plan not in by_plan]
    if old is not None and there:
        _keep(rows, old, there)
    shards = {name: standing[name] for name in there}
    tasks = (
        ShardTask(
            folder,
            plan_shard(shard.stem, rows.samples(shard.rows), recipe.settings),
            recipe.folders[rows.source],
            recipe.settings,
        )
        for shard in missing
    )
    total = sum(len(shard.rows) for shard in missing)
    with progress_bar(total, "writing shards", "image", enabled=work.progress and bool(missing)) as bar:
        for shard, written in zip(missing, work.map(write_shard, tasks, len(missing)), strict=True):
            shards[written.name] = {
                "samples": len(shard.rows),
                "bytes": written.bytes,
                "sha256": written.sha256,
                "plan": shard.plan,
            }
            facts = [(image.offset, image.size, image.crc32) for image in written.images]
            rows.stored.put(shard.rows, written.name, *zip(*facts, strict=True))
            bar.update(len(shard.rows))
    return shards, len(missing)


def _planned(rows: SourceRows, recipe: Recipe) -> Iterator[_Planned]:
    for split, members in rows.kept_by_split():
        for prefix, leaf in trie_leaves(_HexIds(rows.ids[members]), recipe.settings.max_samples):
            stem = shard_stem(rows.source, split, prefix)
            planned = plan_shard(stem, rows.samples(members[leaf]), recipe.settings)
            yield _Planned(stem, members[leaf], planned.plan)


def _keep(rows: SourceRows, old: Dataset, shards: Mapping[str, Places]) -> None:
    """Enter the images of shards that stay, from the old catalogue. shards: name -> rows, ordered by id."""
    names = sorted(old.metadata["shards"])
    number = {name: place for place, name in enumerate(names)}
    there, _ = places_of(old.selected(PLACE_COLUMNS, source=rows.source), old.row_count, names)
    order = np.argsort(there.shards, kind="stable")  # by shard, and in a shard by id
    shard = there.shards[order]
    for name, members in shards.items():
        first, last = np.searchsorted(shard, [number[name], number[name] + 1])
        found = order[first:last]
        assert np.array_equal(there.ids[found], rows.ids[members]), f"{name}: other images than planned"
        rows.stored.put(members, name, there.offsets[found], there.sizes[found], there.crc32[found])


class _HexIds(Sequence[str]):
    """Ids as hexadecimal texts, made when they are asked for."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: Any) -> Any:
        return _HexIds(self._ids[place]) if isinstance(place, slice) else self._ids[place].tobytes().hex()
