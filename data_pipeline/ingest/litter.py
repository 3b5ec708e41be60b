"""Image files that are no pictures of cells: masks, thumbnails, copies made by operating systems."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from data_pipeline.catalog import Sample
from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.curate import NEAR_DUPLICATE_BITS
from data_pipeline.ingest.images import decode_rgb
from data_pipeline.ingest.regions import region_of
from data_pipeline.parallel import Work

# Of macOS, Synology and Windows, with copies of pictures.
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})
_MASK = re.compile(
    r"(?:^|[^a-z])(?:masks?|labels?|label_?maps?|segmentations?|ground_?truth|gt)(?:[^a-z]|$)", re.IGNORECASE
)
_CALLED_MASK = re.compile(r"(?:^|[^a-z])masks?(?:[^a-z]|$)", re.IGNORECASE)
_THUMBNAIL = re.compile(r"(?:^|[ ._-])(?:thumb(?:nail)?s?|previews?)(?=[ ._-]|$)", re.IGNORECASE)
# A mask has one colour for each kind of region; pictures, grey ones too, have hundreds.
_MOST_COLOURS_OF_A_MASK = 32


def may_be_litter(paths: Callable[[], Iterable[list[str]]]) -> npt.NDArray[np.int64]:
    """Numbers of the paths whose names `exclude_litter` has to compare: by far not all. paths: all of a source."""
    stems, names, named, bare = [], [], [], set()
    for part in paths():
        part = [path if region_of(path) is None else "" for path in part]  # somebody drew a box round each region
        whole = [path.removesuffix(PurePosixPath(path).suffix) for path in part]
        stems.append(np.array([hash(stem.casefold()) for stem in whole], np.int64))
        names.append(np.array([hash(stem.rpartition("/")[2].casefold()) for stem in whole], np.int64))
        folders = (set(path.split("/")[:-1]) for path in part)
        system = [not _SYSTEM_FOLDERS.isdisjoint(above) for above in folders]
        thumbnails = [_THUMBNAIL.search(stem.replace("/", " ")) is not None for stem in whole]
        masks = [_MASK.search(stem) is not None for stem in whole]
        named.append(np.logical_or.reduce([system, thumbnails, masks]))
        bare |= {hash(_bare(stem)) for stem, small in zip(whole, thumbnails, strict=True) if small}
    keys = np.concatenate(stems)
    ordered = np.sort(keys[keys != hash("")])
    beside = np.isin(keys, ordered[1:][ordered[1:] == ordered[:-1]])
    pictures = np.isin(np.concatenate(names), np.fromiter(bare, np.int64, len(bare)))
    return np.flatnonzero(np.concatenate(named) | beside | pictures)


def _bare(stem: str) -> str:
    """The name of the picture that a thumbnail, path without suffix, is of."""
    return _THUMBNAIL.sub("", stem.rpartition("/")[2]).strip(" ._-").casefold()


def exclude_litter(
    samples: Sequence[Sample],
    listed: frozenset[str],
    where: Callable[[Sample], Path],
    work: Work,
) -> list[str]:
    """Exclude kept samples that by name and content are no pictures of cells; warnings for these and doubtful ones.

    A mask has few colours, and a mask's name or a picture of its own name beside it. A thumbnail has a thumbnail's
    name and a larger picture that looks the same beside it. listed: sources whose table names each file; these are
    only warned about. where: a sample's file.
    """
    kept = [row for row in samples if row.kept]
    found: dict[str, list[tuple[Sample, str]]] = defaultdict(list)
    found["system file"] = [(row, "") for row in kept if _SYSTEM_FOLDERS & set(PurePosixPath(row.path).parts)]
    # A mask may lie beside a picture that cannot be read.
    pictures = [row for row in samples if row.kept or row.reason.startswith("unreadable")]
    found["mask"], doubtful = _masks(pictures, where, work)
    found["thumbnail"], small = _thumbnails(kept)
    warnings = []
    for kind, rows in found.items():
        for source in sorted({row.source for row, _ in rows}):
            of_source = [(row, of) for row, of in rows if row.source == source and row.kept]
            if source not in listed:
                for row, of in of_source:
                    row.exclude(kind, f"of {of}" if of else "")
            done = "kept, for the table lists them" if source in listed else "left out"
            warnings += _warning([row for row, _ in of_source], f"are {kind}s by name and content: {done}")
    doubts = {
        "are named like masks, but have many colours: kept": doubtful,
        "are named like thumbnails, but no larger picture of the same name looks like them: kept": small,
    }
    for said, in_doubt in doubts.items():
        for source in sorted({row.source for row in in_doubt}):
            warnings += _warning([row for row in in_doubt if row.source == source and row.kept], said)
    return warnings


def _warning(rows: Sequence[Sample], said: str) -> list[str]:
    if not rows:
        return []
    examples = ", ".join(row.path for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
    return [f"{rows[0].source}: {len(rows)} file(s) {said} ({examples})"]


def _masks(
    samples: Sequence[Sample], where: Callable[[Sample], Path], work: Work
) -> tuple[list[tuple[Sample, str]], list[Sample]]:
    """Masks, each with its picture's path, '' for none; and pictures that are only named like masks."""
    beside: Mapping[tuple[str, str], list[Sample]] = defaultdict(list)
    for row in samples:
        beside[row.source, str(PurePosixPath(row.path).with_suffix("")).casefold()].append(row)
    pairs = [rows for rows in beside.values() if len({PurePosixPath(row.path).suffix for row in rows}) > 1]
    named = [row for row in samples if row.kept and _MASK.search(row.path.removesuffix(PurePosixPath(row.path).suffix))]
    candidates = {id(row): row for row in [*named, *(row for rows in pairs for row in rows)]}
    paths = [where(row) for row in candidates.values()]
    flat = dict(zip(candidates, work.map_images(_has_few_colours, paths, "looking for masks"), strict=True))
    masks = {id(row): (row, "") for row in named if flat[id(row)]}
    for rows in pairs:
        pictures = [row for row in rows if not flat[id(row)]]
        if pictures:
            masks |= {id(row): (row, pictures[0].path) for row in rows if flat[id(row)]}
    doubtful = [row for row in named if not flat[id(row)] and _CALLED_MASK.search(row.path)]
    return list(masks.values()), doubtful


def _thumbnails(kept: Sequence[Sample]) -> tuple[list[tuple[Sample, str]], list[Sample]]:
    """Thumbnails, each with its picture's path; and pictures that are only named like thumbnails."""
    by_name: Mapping[tuple[str, str], list[Sample]] = defaultdict(list)
    for row in kept:
        by_name[row.source, PurePosixPath(row.path).stem.casefold()].append(row)
    thumbnails, doubtful = [], []
    for row in kept:
        path = PurePosixPath(row.path)
        if not any(_THUMBNAIL.search(part) for part in (path.stem, *path.parts[:-1])):
            continue
        larger = [other for other in by_name[row.source, _bare(path.stem)] if _is_reduced(row, other)]
        if larger:
            thumbnails.append((row, larger[0].path))
        else:
            doubtful.append(row)
    return thumbnails, doubtful


def _is_reduced(row: Sample, other: Sample) -> bool:
    """Whether a picture looks like another and is less than three quarters as wide."""
    if row is other or not row.width or not other.width or 4 * row.width > 3 * other.width:
        return False
    one, two = row.perceptual_hash or b"", other.perceptual_hash or b""
    return (int.from_bytes(one) ^ int.from_bytes(two)).bit_count() <= 2 * NEAR_DUPLICATE_BITS


def _has_few_colours(path: Path) -> bool:
    try:
        return decode_rgb(path.read_bytes()).getcolors(_MOST_COLOURS_OF_A_MASK) is not None
    except (UnreadableImage, OSError):
        return False
