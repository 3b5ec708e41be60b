"""Whether the splits are usable for training and scores, and which ratio is better for the given groups.

A split is a function of the group's name and the ratio alone (`curate.split_of`), so few groups get uneven shares: with
63/7/30 and n groups, 0.93^n of all data sets have no validation group. The user can only choose the ratio.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.curate import DEFAULT_RATIO, Ratio, check_ratio, split_position
from data_pipeline.names import shown

GROUP_COLUMNS = ("id", "group", "cell_type", "status", "origin")
_FEW_GROUPS = 10  # with fewer, scores depend on which groups happen to be held out
_FAR = 0.10  # difference from the asked-for share that is reported, as is half of it
_GAP = 0.1  # cost of a cell type without training or test image, in shares of images in the wrong split


@dataclass(frozen=True)
class _Groups:
    """Groups of the images that count, sorted by their position; an entry for each group and cell type in it."""

    positions: npt.NDArray[np.float64]  # [entries], `split_position`
    types: npt.NDArray[np.int8]  # [entries], numbers of CELL_TYPES; len(CELL_TYPES) for unlabelled
    images: npt.NDArray[np.int32]  # [entries]
    starts: npt.NDArray[np.int64]  # [groups], first entry of each
    names: Mapping[float, str]  # of positions; an image that is a group of its own has none

    @classmethod
    def of(cls, parts: Iterable[pa.Table | pa.RecordBatch]) -> _Groups:
        """From kept real images with a cell type, or from all if none has one. parts: columns GROUP_COLUMNS."""
        number = {name: np.int8(place) for place, name in enumerate((*CELL_TYPES, ""))}
        entries: list[npt.NDArray[Any]] = [np.empty((0, 3))]
        counted: Counter[tuple[str, str]] = Counter()
        for part in parts:
            part = part.filter(pc.and_(pc.equal(part["status"], "kept"), pc.not_equal(part["origin"], "synthetic")))
            alone = pc.equal(part["group"], part["id"])
            own = part.filter(alone)
            kinds = [number[name] for name in own["cell_type"].to_pylist()]
            positions = map(split_position, own["group"].to_pylist())
            entries.append(np.array([(place, kind, 1) for place, kind in zip(positions, kinds, strict=True)]))
            several = part.filter(pc.invert(alone))
            counted.update(zip(several["group"].to_pylist(), several["cell_type"].to_pylist(), strict=True))
        names = {split_position(group): group for group, _ in counted}
        place_of = {group: place for place, group in names.items()}
        entries.append(np.array([(place_of[group], number[kind], count) for (group, kind), count in counted.items()]))
        positions, types, images = np.concatenate([each.reshape(-1, 3) for each in entries]).T
        order = np.lexsort((types, positions))
        if (types < len(CELL_TYPES)).any():
            order = order[types[order] < len(CELL_TYPES)]
        places = positions[order]
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        return cls(places, types[order].astype(np.int8), images[order].astype(np.int32), starts, names)

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, group: int | np.signedinteger[Any]) -> str:
        """The name of a group, for messages."""
        return shown(self.names.get(float(self.positions[self.starts[group]]), "one image"))

    def cuts(self, ratio: Ratio) -> tuple[int, int]:
        """Number of groups before the end of train, and before the end of validation."""
        positions = self.positions[self.starts]
        return int(np.searchsorted(positions, ratio[0])), int(np.searchsorted(positions, ratio[0] + ratio[1]))

    def before(self, groups: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Counts of images of the groups before each of these, rising: int64 [n, cell types]."""
        edges = np.append(self.starts, len(self.types))[np.asarray(groups)]
        counts = np.zeros((len(edges) + 1, len(CELL_TYPES) + 1), np.int64)
        np.add.at(counts, (np.searchsorted(edges, np.arange(len(self.types)), side="right"), self.types), self.images)
        return np.asarray(counts.cumsum(0)[:-1])

    def total(self) -> npt.NDArray[np.int64]:
        """Counts of images, int64 [cell types]."""
        return np.bincount(self.types, self.images, len(CELL_TYPES) + 1).astype(np.int64)

    def parts(self, cuts: tuple[int, int]) -> npt.NDArray[np.int64]:
        """Counts of images, int64 [splits, cell types]."""
        return np.diff(np.stack([0 * self.total(), *self.before(cuts), self.total()]), axis=0)


def check_splits(parts: Iterable[pa.Table | pa.RecordBatch], ratio: Ratio) -> list[str]:
    """Warnings for empty splits, shares far from the ratio, missing cell types and large groups; and what to do.

    parts: rows, with GROUP_COLUMNS. Only images with a cell type count, if any has one. A split may be empty if its
    share is 0.
    """
    groups = _Groups.of(parts)
    if not len(groups) or max(ratio) == 1:  # nothing is to be held out
        return []
    warnings = _large_groups(groups)
    if len(groups) == 1:
        return [
            f"all images are of one group ({groups.name(0)}), so nothing can be held out: no ratio= helps; "
            "name patients or slides (a table's columns, sub-folders), three at least",
        ]
    cuts = groups.cuts(ratio)
    parts = groups.parts(cuts)
    shares = parts.sum(1) / parts.sum()
    of = dict(zip(SPLITS, (cuts[0], cuts[1] - cuts[0], len(groups) - cuts[1]), strict=True))
    empty = [split for split, asked in zip(SPLITS, ratio, strict=True) if asked and not of[split]]
    far = [
        split
        for split, share, asked in zip(SPLITS, shares, ratio, strict=True)
        if abs(share - asked) > _FAR or share < asked / 2
    ]
    gaps = _gaps(groups, parts, ratio)
    if not (empty or far or gaps or len(groups) < _FEW_GROUPS):
        return warnings
    told = ", ".join(
        f"{split} {images} image(s) of {of[split]} group(s) ({share:.0%}; asked for {asked:.0%})"
        for split, images, share, asked in zip(SPLITS, parts.sum(1), shares, ratio, strict=True)
    )
    if empty or far or len(groups) < _FEW_GROUPS:
        trouble = f"no {' and no '.join(empty)} image: " if empty else ""
        warnings.append(f"{trouble}{len(groups)} groups (patients, slides or single images) fall as {told}")
    warnings += gaps
    if empty or far or gaps:
        warnings.append(_way_out(groups, ratio, cuts))
    return warnings


def way_out(dataset: Dataset, splits: Sequence[str]) -> str:
    """What to do about splits without images; '' if each has some."""
    real = (part.filter(pc.not_equal(part["origin"], "synthetic")) for part in dataset.selected(["split", "origin"]))
    if set(splits) <= {split for part in real for split in part["split"].unique().to_pylist()}:
        return ""
    ratio = check_ratio(dataset.metadata.get("ratio", DEFAULT_RATIO))
    groups = _Groups.of(dataset.batches(GROUP_COLUMNS))
    return _way_out(groups, ratio, groups.cuts(ratio))


def nearest_ratio(groups: _Groups, ratio: Ratio) -> Ratio | None:
    """The ratio that gives every split a group, and shares and cell types nearest to those asked for.

    None if no ratio of three decimals gives every split a group.
    """
    for steps in (100, 1000):
        found = _best_cuts(groups, ratio, steps)
        if found is not None:
            first, second = found
            return (first / steps, round(second / steps - first / steps, 3), round(1 - second / steps, 3))
    return None


def _best_cuts(groups: _Groups, ratio: Ratio, steps: int) -> tuple[int, int] | None:
    """The best ends of train and of validation, in multiples of 1/steps; None if a split would always be empty."""
    grid = np.arange(1, steps)
    before = np.searchsorted(groups.positions[groups.starts], grid / steps)
    counts, total = groups.before(before), groups.total()
    present = total > 0
    best: tuple[float, float, int, int] | None = None
    for first in np.flatnonzero(before > 0):
        seconds = np.flatnonzero((before > before[first]) & (before < len(groups)))
        if not len(seconds):
            continue
        train, test = counts[first], total - counts[seconds]
        images = np.column_stack([np.full(len(seconds), train.sum()), np.zeros(len(seconds)), test.sum(1)])
        images[:, 1] = total.sum() - images.sum(1)
        wrong = np.abs(images / total.sum() - np.array(ratio)).sum(1) / 2
        gaps = (present & (train == 0)).sum() + (present & (test == 0)).sum(1)
        # A very small validation share would hardly ever get a later group.
        thin = (grid[seconds] - grid[first]) / steps < ratio[1] / 2
        cost = np.round(wrong + _GAP * (gaps + thin), 9)
        # Of ratios with the same splits, the one nearest to the asked-for: it decides for later groups.
        away = abs(grid[first] / steps - ratio[0]) + np.abs(grid[seconds] / steps - ratio[0] - ratio[1])
        chosen = int(np.lexsort((away, cost))[0])
        found = (float(cost[chosen]), float(away[chosen]), int(grid[first]), int(grid[seconds[chosen]]))
        best = min(best, found) if best else found
    return best[2:] if best else None


def _cost(groups: _Groups, cuts: tuple[int, int], ratio: Ratio) -> float:
    """The cost that `_best_cuts` minimises; infinite if a split is empty."""
    parts = groups.parts(cuts)
    if not parts.sum(1).all():
        return float("inf")
    gaps = ((parts.sum(0) > 0) & (parts[[0, 2]] == 0)).sum()
    return float(np.abs(parts.sum(1) / parts.sum() - np.array(ratio)).sum() / 2 + _GAP * gaps)


def _gaps(groups: _Groups, parts: npt.NDArray[np.int64], ratio: Ratio) -> list[str]:
    """Warnings for cell types without training images, or without test images."""
    warnings = []
    for split, images, asked in zip(SPLITS, parts, ratio, strict=True):
        if split == "validation" or not asked or not images.sum():
            continue
        lacking = [
            f"{cell_type} ({count} image(s) of {int((groups.types == number).sum())} group(s))"
            for number, (cell_type, count) in enumerate(zip(CELL_TYPES, parts.sum(0), strict=False))
            if count and not images[number]
        ]
        if lacking:
            word = "training" if split == "train" else split
            effect = "it cannot be learned" if split == "train" else "nothing says how well it is known"
            warnings.append(f"no {word} image of {', '.join(lacking)}: {effect}")
    return warnings


def _large_groups(groups: _Groups) -> list[str]:
    """Warnings for groups that hold very many of the images: often such a group is not one patient."""
    images = np.add.reduceat(groups.images, groups.starts)
    share = images / images.sum()
    large = np.flatnonzero(share > max(1 / 3, 1.5 / len(images)))
    return [
        f"group '{groups.name(number)}' holds {share[number]:.0%} of the images ({images[number]} of "
        f"{images.sum()}): if it is not one patient or slide, say in the source whose each image is"
        for number in large
    ]


def _way_out(groups: _Groups, ratio: Ratio, cuts: tuple[int, int]) -> str:
    """A better ratio and its splits, or what else to do."""
    few = "bring in images of more patients or slides"
    if len(groups) < len(SPLITS):
        return f"{len(groups)} group(s) make no three splits, whatever the ratio=: {few}, three at least"
    better = nearest_ratio(groups, ratio)
    if better is None:
        return f"no ratio= of three decimals gives each split a group: {few}"
    if _cost(groups, groups.cuts(better), ratio) >= _cost(groups, cuts, ratio) - 0.02:
        return f"no other ratio= does better for these groups: {few}"
    parts = groups.parts(groups.cuts(better))
    told = ", ".join(f"{split} {images}" for split, images in zip(SPLITS, parts.sum(1), strict=True))
    lacking = ((parts.sum(0) > 0) & (parts[[0, 2]] == 0)).any(0)
    still = [cell_type for cell_type, missing in zip(CELL_TYPES, lacking, strict=False) if missing]
    rest = f", {', '.join(still)} still missing from training or test" if still else ""
    written = ",".join(f"{share:g}" for share in better)
    return (
        f"build_shards.py ratio=[{written}] gives {told} images of these groups{rest}; it moves images between splits, "
        f"so train anew after it. Or {few}"
    )
