"""Fields of view and the boxes that people or programs drew round their cells: Pascal VOC, COCO, CSV."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from defusedxml import DefusedXmlException, ElementTree
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.names import shown
from data_pipeline.sources.csv_files import read_csv
from data_pipeline.sources.declaration import AnnotationFormat, is_hidden, list_images

FIELDS_FOLDER, TYPES_FILE = "JPEGImages", "types.csv"
_SUFFIX: dict[AnnotationFormat, str] = {"voc": ".xml", "coco": ".json", "csv": ".csv"}
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_SCALE = "microns_per_pixel"  # column of a CSV, optional
_TURNED = range(5, 9)  # EXIF orientations in which width and height change places


@dataclass(frozen=True)
class Box:
    """A rectangle round a cell, pixels of the upright field; right and bottom are exclusive."""

    name: str  # as written, or the kind of cell that a detector found
    left: int
    top: int
    right: int
    bottom: int
    score: float = 1.0  # a detector's confidence; 1 for an annotation


@dataclass(frozen=True)
class AnnotatedField:
    """A field and all its boxes."""

    path: str  # of its image, relative, posix
    width: int  # pixels, as the annotation says
    height: int
    boxes: tuple[Box, ...]  # none: a field that is said to have no cells
    microns_per_pixel: float | None = None  # None: not written


@dataclass(frozen=True)
class _Entry:
    """What one annotation says of one field."""

    image: str  # as written
    size: tuple[int, int] | None  # width, height; None: not written
    boxes: list[Box]
    microns_per_pixel: float | None = None


def read_annotations(root: Path, annotations: AnnotationFormat) -> tuple[list[AnnotatedField], list[str]]:
    """All annotated fields below a folder, sorted by path, and warnings.

    An image and its annotation have the same name without suffix. Boxes are cut at the border of their field; those
    outside and those without area are left out. Warnings, one line each: such boxes, annotations without an image,
    images without an annotation (not the same as a field without cells, whose annotation has no box). UserError for a
    folder without images or annotations, two images of one name, and an annotation that cannot be read, or that is of
    a field as it was before its EXIF orientation turned it by a quarter.
    """
    images, others = list_images(root)
    by_stem = _fields_by_stem(root, [path for path in images if not is_hidden(path)])
    files = [path for path in others if path.lower().endswith(_SUFFIX[annotations]) and not is_hidden(path)]
    found: dict[str, AnnotatedField] = {}
    lost: list[str] = []
    outside: list[str] = []
    empty = 0
    entries = [entry for path in files for entry in _READERS[annotations](on_disk(root, path))]
    for entry in entries:
        path = by_stem.get(PurePosixPath(entry.image.replace("\\", "/")).stem)
        if path is None:
            lost.append(entry.image)
            continue
        known = found.get(path)
        upright = (known.width, known.height) if known else image_size(on_disk(root, path))
        width, height = entry.size or upright
        if width != height and upright == (height, width):
            raise UserError(
                f"{root}: the picture {shown(path)} is {height}x{width} as it is shown, its annotation says "
                f"{width}x{height}: annotate it as it is shown, or store it without an EXIF orientation"
            )
        whole = [box for box in entry.boxes if box.right > box.left and box.bottom > box.top]
        empty += len(entry.boxes) - len(whole)
        cut = [_cut(box, width, height) for box in whole]
        outside += [path for before, after in zip(whole, cut, strict=True) if after != before]
        boxes = (*(known.boxes if known else ()), *filter(None, cut))
        scale = entry.microns_per_pixel or (known.microns_per_pixel if known else None)
        found[path] = AnnotatedField(path, width, height, boxes, scale)
    if not entries:
        raise UserError(
            f"{root}: no {annotations} annotation here ({_SUFFIX[annotations]}): see annotations= in --help"
        )
    bare = sorted(set(by_stem.values()) - found.keys())
    warnings = [
        f"{count} {what}"
        for count, what in (
            (empty, "box(es) without area left out"),
            (len(outside), f"box(es) reach past their field and are cut or left out ({_first(outside)})"),
            (len(lost), f"annotation(s) without a field of the same name ({_first(lost)})"),
            (len(bare), f"image(s) without an annotation left out; one without boxes says: no cells ({_first(bare)})"),
        )
        if count
    ]
    return [found[path] for path in sorted(found)], warnings


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture, by its header; (0, 0) for a file that is no picture."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112) in _TURNED
            return (image.height, image.width) if turned else image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0, 0


def _first(names: list[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")


def _cut(box: Box, width: int, height: int) -> Box | None:
    """The part of the box inside the field; None if there is none."""
    left, top, right, bottom = max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height)
    return Box(box.name, left, top, right, bottom, box.score) if right > left and bottom > top else None


def _fields_by_stem(root: Path, images: list[str]) -> dict[str, str]:
    """Images by their names without suffix: those below a folder JPEGImages, where there is one (masks lie beside)."""
    by_stem: dict[str, str] = {}
    for path in [path for path in images if FIELDS_FOLDER in PurePosixPath(path).parts[:-1]] or images:
        other = by_stem.setdefault(PurePosixPath(path).stem, path)
        if other != path:
            raise UserError(f"{root}: '{shown(other)}' and '{shown(path)}' have the same name: rename one of them")
    return by_stem


def _read_voc(path: Path) -> Iterator[_Entry]:
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        boxes = [
            _box(box.findtext("name", ""), *(box.findtext(f"bndbox/{edge}", "") for edge in _EDGES))
            for box in root.iter("object")
        ]
    except DefusedXmlException:
        raise UserError(f"{path}: declares XML entities, which no annotation needs: not read; remove it") from None
    except (ElementTree.ParseError, ValueError, OverflowError, OSError) as error:
        raise UserError(f"{path}: not an annotation in Pascal VOC's format ({error}); mend or remove it") from None
    yield _Entry(path.name, (width, height), boxes)


def _read_coco(path: Path) -> Iterator[_Entry]:
    """Nothing for a JSON file of another kind."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            return
        names = {each["id"]: str(each["name"]) for each in content.get("categories", ())}
        boxes: dict[Any, list[Box]] = {each["id"]: [] for each in content["images"]}
        for each in content["annotations"]:
            left, top, width, height = map(float, each["bbox"])
            boxes[each["image_id"]].append(_box(names[each["category_id"]], left, top, left + width, top + height))
        entries = [
            _Entry(str(each["file_name"]), (int(each["width"]), int(each["height"])), boxes[each["id"]])
            for each in content["images"]
        ]
    except KeyError as error:
        raise UserError(f"{path}: not in COCO's format (no {error}); export it again, or remove it") from None
    except (ValueError, TypeError, OverflowError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not in COCO's format ({error}); export it again, or remove it") from None
    yield from entries


def _read_csv(path: Path) -> Iterator[_Entry]:
    """A line for each box; a line with an image alone: a field without cells."""
    if path.name == TYPES_FILE:
        return
    for line, row in read_csv(path, required=("image", "label", *_EDGES), optional=(_SCALE,)).rows:
        edges, scale = [row[edge] for edge in _EDGES], row.get(_SCALE, "")
        if scale and not _is_scale(scale):
            raise UserError(f"{path}, line {line}: {_SCALE}={shown(scale)}: write a number above 0")
        try:
            boxes = [_box(row["label"], *edges)] if row["label"] or any(edges) else []
        except (ValueError, OverflowError):
            raise UserError(
                f"{path}, line {line}: xmin,ymin,xmax,ymax={','.join(map(shown, edges))}: write four numbers, in pixels"
            ) from None
        yield _Entry(row["image"], None, boxes, float(scale) if scale else None)


def _is_scale(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


_READERS = {"voc": _read_voc, "coco": _read_coco, "csv": _read_csv}


def _box(name: str, *edges: str | float) -> Box:
    left, top, right, bottom = (round(float(edge)) for edge in edges)
    return Box(name.strip(), left, top, right, bottom)


def names_of(fields: Iterable[AnnotatedField]) -> list[str]:
    """The name of every box."""
    return [box.name for field in fields for box in field.boxes]
