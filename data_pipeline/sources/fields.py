"""Fields of view with boxes round their cells: each white cell's box is an image."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from data_pipeline.errors import UserError
from data_pipeline.ingest.regions import Region, split_region
from data_pipeline.names import plain, shown
from data_pipeline.sources.annotations import TYPES_FILE, AnnotatedField, Box, read_annotations
from data_pipeline.sources.csv_files import read_csv
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, raw_layout
from data_pipeline.sources.labels import cell_type_of, refuse_unknown

# The longer side of a box, as a part of its image's side. Barcelona's cells fill 0.3 (lymphocytes) to 0.5 (monocytes)
# of their images. Most fields of BCCD are too low (480 pixels) for less than 0.5.
CELL_SHARE = 0.5

WHITE_CELL, RED_CELL, PLATELET = KINDS = ("white cell", "red cell", "platelet")
# Names of boxes in `plain` form. Every nucleated cell is a white cell here: what it is, a classifier says.
_KIND_OF = {
    **dict.fromkeys((WHITE_CELL, "wbc", "white blood cell", "leukocyte", "leucocyte"), WHITE_CELL),
    **dict.fromkeys((RED_CELL, "rbc", "red blood cell", "erythrocyte"), RED_CELL),
    **dict.fromkeys((PLATELET, "platelets", "thrombocyte"), PLATELET),
}


@dataclass(frozen=True)
class Cell:
    """A box of a field."""

    field: str  # path of its image, relative, posix
    name: str  # the box's, as written
    region: Region  # a square round it
    microns_per_pixel: float | None  # None: not known


def field_of(path: str) -> str:
    """The field that a cell is cut from."""
    return split_region(path)[0]


@raw_layout(
    "bccd",
    "BCCD as downloaded: the white cells of its fields",
    public=True,
    licence="MIT. Shenggan, and the first authors of the data, cosmicad and akshaylamba: BCCD Dataset",
    group_of=field_of,
)
@raw_layout("fields", "white cells cut out of fields with boxes", group_of=field_of, annotated=True)
def survey(declaration: SourceDeclaration) -> Survey:
    """The white cells of all fields. Group: the field.

    The type is the box's name. A box that is only called a white cell (WBC) has the type that `types.csv`
    (image,white_cells) gives for its field, if the field has one such box and one name there; else no type. Red cells
    and platelets are left out, unless `labels` has an entry for them. UserError for an unknown name.
    """
    cells, warnings = find_cells(declaration)
    named = _types(declaration.root)
    if lost := named.keys() - {PurePosixPath(cell.field).name for cell in cells}:
        warnings.append(f"{TYPES_FILE} names {len(lost)} field(s) without a white cell here ({shown(min(lost))}, ...)")
    unnamed = Counter(cell.field for cell in cells if _is_unnamed(cell, declaration.labels))
    images: list[RawImage] = []
    unknown: list[str] = []
    for cell in cells:
        label = cell.name
        cell_type: str | None = ""
        if not _is_unnamed(cell, declaration.labels):
            cell_type = cell_type_of(label, declaration.labels)
        elif unnamed[cell.field] == 1 and (written := named.get(PurePosixPath(cell.field).name)):
            cell_type = cell_type_of(written, declaration.labels)
            several = written.split() if cell_type is None else []
            if len(several) > 1 and None not in (cell_type_of(name, declaration.labels) for name in several):
                cell_type = ""
            else:
                label = written
        if cell_type is None:
            unknown.append(label)
        path = f"{cell.field}{cell.region}"
        images.append(RawImage(path, label, cell_type or "", cell.field, declaration.domain, cell.microns_per_pixel))
    refuse_unknown(unknown, declaration.root, "name boxes after the cell types", declaration.labels)
    return Survey(images, [f"{declaration.name}: {warning}" for warning in warnings])


def has_annotated_fields(folder: Path) -> bool:
    """Whether a folder holds fields and boxes in the layout of Pascal VOC."""
    return next((folder / "Annotations").glob("*.xml"), None) is not None


def find_cells(declaration: SourceDeclaration) -> tuple[list[Cell], list[str]]:
    """The boxes of all fields, sorted by path, but for red cells and platelets that `labels` does not name.

    Returns warnings, those of `read_annotations` and one for fields without a white cell. UserError as there, where
    there is no white cell, and for a field of unknown scale that is to be cut by `side_microns`.
    """
    root, labels = declaration.root, declaration.labels
    fields, warnings = read_annotations(root, declaration.annotations)
    cells = []
    for field in fields:
        field = replace(field, microns_per_pixel=field.microns_per_pixel or declaration.microns_per_pixel)
        cells += [
            Cell(field.path, box.name, square_round(box, field, declaration.side_microns), field.microns_per_pixel)
            for box in field.boxes
            if box.name in labels or _KIND_OF.get(plain(box.name), WHITE_CELL) == WHITE_CELL
        ]
    if not cells:
        raise UserError(f"{root}: no box of a white cell here; give a folder with annotations and their images")
    bare = sorted({field.path for field in fields} - {cell.field for cell in cells})
    if bare:
        warnings.append(f"{len(bare)} field(s) without a box of a white cell ({', '.join(map(shown, bare[:3]))})")
    return sorted(cells, key=lambda cell: (f"{cell.field}{cell.region}", cell.name)), warnings


def kind_of(name: str, labels: Mapping[str, str]) -> str | None:
    """The kind of cell, one of KINDS, that a box's name stands for; None for an unknown name."""
    known = _KIND_OF.get(plain(name))
    if known is None and (cell_type := cell_type_of(name, labels)) is not None:
        known = PLATELET if cell_type == PLATELET else WHITE_CELL
    return known


def square_round(box: Box, field: AnnotatedField, side_microns: float | None = None) -> Region:
    """A square round the centre of a box, with this side; without one the box's longer side is CELL_SHARE of it.

    Near the border the square is moved inwards, so that it shows no invented pixels; it is at most as large as the
    field. UserError for a side in microns in a field of unknown scale.
    """
    width, height = field.width, field.height
    if side_microns is None:
        side = round(max(box.right - box.left, box.bottom - box.top) / CELL_SHARE)
    elif field.microns_per_pixel is None:
        raise UserError(f"{shown(field.path)}: side_microns={side_microns:g} needs microns_per_pixel=, of all fields")
    else:
        side = max(1, round(side_microns / field.microns_per_pixel))
    side = min(side, width, height)
    x, y = (box.left + box.right - side) // 2, (box.top + box.bottom - side) // 2
    return Region(min(max(x, 0), width - side), min(max(y, 0), height - side), side, side)


def _is_unnamed(cell: Cell, labels: Mapping[str, str]) -> bool:
    """Whether the box says only that this is a white cell."""
    return cell.name not in labels and _KIND_OF.get(plain(cell.name)) == WHITE_CELL


def _types(root: Path) -> dict[str, str]:
    """File name of a field -> the types that `types.csv` gives for its white cells, blank separated."""
    path = root / TYPES_FILE
    if not path.exists():
        return {}
    return {row["image"]: row["white_cells"] for _, row in read_csv(path, required=("image", "white_cells")).rows}
