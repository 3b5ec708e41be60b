"""Which samples are kept, and in which split: pure functions over the rows of a catalogue."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import normpath

import numpy as np
import numpy.typing as npt

from data_pipeline.catalog import FOLDS, SPLITS, Sample
from data_pipeline.errors import UserError
from data_pipeline.ingest.duplicates import near_components
from data_pipeline.names import Names, plain, shown
from data_pipeline.sources.csv_files import read_csv

# Of 256 bits. Saving an image again, resizing it, changing its contrast or cropping two pixels changes up to 16 bits;
# of 13 million pairs of different cells in the two public sets the nearest differs in 66.
NEAR_DUPLICATE_BITS = 16

CONFLICT = "conflicting labels"  # kind of reason

_HELD_OUT_FIRST = {split: rank for rank, split in enumerate(reversed(SPLITS))}

Ratio = tuple[float, float, float]  # train, validation, test
DEFAULT_RATIO: Ratio = (0.63, 0.07, 0.30)


def check_ratio(ratio: Sequence[float]) -> Ratio:
    """The ratio as a tuple; UserError unless it is three shares that add up to 1."""
    if len(ratio) != 3 or min(ratio) < 0 or abs(sum(ratio) - 1) > 1e-6:
        raise UserError(f"split ratio {list(ratio)}: give shares of train, validation and test that add up to 1")
    return (ratio[0], ratio[1], ratio[2])


def _uniform(purpose: str, group: str) -> float:
    """A number in [0, 1) that is a function of the group's name."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{group}".encode()).digest()[:6]) / 2**48


def split_position(group: str) -> float:
    """A group's position in [0, 1): train is below the ratio's first share, test above the sum of its first two."""
    return _uniform("split", group)


def split_of(group: str, ratio: Ratio = DEFAULT_RATIO) -> str:
    """The split of a group: a function of its name and the ratio alone, so that more data never moves it.

    Few groups therefore get uneven shares, as with every assignment that does not depend on the other groups.
    """
    position = split_position(group)
    return SPLITS[int(position >= ratio[0]) + int(position >= ratio[0] + ratio[1])]


def fold_of(group: str) -> int:
    """The cross-validation fold of a group, 0 to FOLDS - 1, independent of its split."""
    return int(_uniform("fold", group) * FOLDS)


def group_name(source: str, group: str, identity: str) -> str:
    """A group's name in the catalogue, unique over sources; an image without a group has its id's."""
    return f"{source}/{group}" if group else identity


@dataclass(frozen=True)
class Exclusion:
    """One line of an expert's list: an image by its id, or by its path in one or all sources."""

    id: str = ""
    path: str = ""
    source: str = ""
    reason: str = ""


def read_exclusions(path: Path) -> list[Exclusion]:
    """Read a CSV with the columns id or path, and optionally source and reason; UserError names the wrong line."""
    exclusions = []
    for line, row in read_csv(path, optional=("id", "path", "source", "reason")).rows:
        exclusion = Exclusion(
            row.get("id", "").lower(),
            normpath(row["path"]) if row.get("path") else "",
            row.get("source", ""),
            row.get("reason", ""),
        )
        if not exclusion.id and not exclusion.path:
            raise UserError(f"{path}, line {line}: no image named; fill the column id or path")
        if exclusion.id and not re.fullmatch(r"[0-9a-f]{64}", exclusion.id):
            raise UserError(f"{path}, line {line}: '{shown(exclusion.id)}' is no id; write the file's SHA-256 in hex")
        exclusions.append(exclusion)
    return exclusions


def concerned(paths: Callable[[], Iterable[str]], exclusions: Sequence[Exclusion]) -> set[str]:
    """Those of all paths that an entry of the expert's list may mean."""
    named = {exclusion.path for exclusion in exclusions if exclusion.path}
    found = {path for path in paths() if path in named} if named else set()
    if unknown := {plain(path.replace("\\", "/")) for path in named - found}:
        found |= {path for path in paths() if plain(path) in unknown}  # every form of `Names` is coarser than the last
    return found


def apply_exclusions(
    samples: Sequence[Sample], exclusions: Sequence[Exclusion], sources: Iterable[str] = ()
) -> list[Exclusion]:
    """Exclude the samples of the expert's list; returns the entries that match none.

    samples: all that are `concerned`. sources: names of all sources of the data set. A path or source that none has
    means the one that matches it (`Names.matches`), if there is one only.
    """
    paths = Names(row.path for row in samples)
    names = Names([*sources, *(row.source for row in samples)])
    by_name: dict[str, list[tuple[int, Exclusion]]] = defaultdict(list)
    for number, written in enumerate(exclusions):
        meant = replace(written, path=_meant(written.path, paths), source=_meant(written.source, names))
        by_name[meant.id or meant.path].append((number, meant))
    matched: set[int] = set()
    for row in samples:
        for number, exclusion in by_name.get(row.id, []) + by_name.get(row.path, []):
            if exclusion.source in ("", row.source) and exclusion.path in ("", row.path):
                matched.add(number)
                if row.kept:
                    row.exclude("expert's list", exclusion.reason)
    return [exclusion for number, exclusion in enumerate(exclusions) if number not in matched]


def _meant(written: str, names: Names) -> str:
    """The one name that matches; what is written if none or several do."""
    found = names.matches(written) or names.matches(written.replace("\\", "/")) if written else []
    return found[0] if len(found) == 1 else written


def duplicate_sets(hashes: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers of each set of equal or nearly equal images; chains of near pairs join a set.

    hashes: uint8 [n, HASH_BYTES], perceptual.
    """
    component = near_components(hashes, NEAR_DUPLICATE_BITS)
    order = np.argsort(component, kind="stable")
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        yield order[start : start + size]


def settle(rows: list[Sample], source_rank: Mapping[str, int]) -> None:
    """Keep one of these images of the same thing, or exclude all if their labels contradict each other.

    The kept image is of the most held-out split (test, validation, train); there labelled images come first, then the
    order of sources and paths. One image of each domain in that split is kept.
    """
    rows.sort(
        key=lambda row: (
            _HELD_OUT_FIRST[row.split],
            not row.cell_type,
            source_rank[row.source],
            row.path,
            row.source_label,
        )
    )
    cell_types = sorted({row.cell_type for row in rows} - {""})
    if len(cell_types) > 1:
        for row in rows:
            other = next(other for other in rows if other.cell_type not in ("", row.cell_type))
            row.exclude(CONFLICT, f"{other.cell_type} at {other.source}:{other.path}")
        return
    # Stain models need the same cell in two stains of one split: one image of each is kept.
    keepers: dict[str, Sample] = {}
    for row in rows:
        same_file = any(row.id == keeper.id for keeper in keepers.values())
        if row.split == rows[0].split and row.domain not in keepers and not same_file:
            keepers[row.domain] = row
    for row in rows:
        keeper = keepers.get(row.domain, rows[0])
        if keeper is row:
            continue
        kind = "duplicate" if row.id == keeper.id else "near duplicate"
        row.exclude(kind, f"of {keeper.source}:{keeper.path}")
