"""Image files that are no pictures of cells: masks, thumbnails, copies made by operating systems."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from data_pipeline.catalog import Sample
from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.curate import NEAR_DUPLICATE_BITS
from data_pipeline.ingest.images import decode_rgb
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
        bare = _THUMBNAIL.sub("", path.stem).strip(" ._-").casefold()
        larger = [other for other in by_name[row.source, bare] if _is_reduced(row, other)]
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
