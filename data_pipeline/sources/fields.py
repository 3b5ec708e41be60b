"""Fields of view with boxes round their cells (Pascal VOC): each white cell's box is an image."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.regions import Region, split_region
from data_pipeline.names import plain, shown
from data_pipeline.sources.csv_files import read_csv
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, is_hidden, list_images, raw_layout
from data_pipeline.sources.labels import cell_type_of, refuse_unknown

# The longer side of a box, as a part of its image's side. Barcelona's cells fill 0.3 (lymphocytes) to 0.5 (monocytes)
# of their images. Most fields of BCCD are too low (480 pixels) for less than 0.5.
CELL_SHARE = 0.5
FIELDS_FOLDER, TYPES_FILE = "JPEGImages", "types.csv"

_WHITE_CELL = frozenset({"wbc", "white cell", "white blood cell", "leukocyte", "leucocyte"})
_NO_WHITE_CELL = frozenset({"rbc", "red cell", "red blood cell", "erythrocyte", "platelet", "platelets", "thrombocyte"})


@dataclass(frozen=True)
class Cell:
    """A box of a field."""

    field: str  # path of its image, relative, posix
    name: str  # the box's, as written
    region: Region  # a square round it


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
@raw_layout("fields", "Pascal VOC boxes (Annotations/*.xml) of cells in fields", group_of=field_of)
def survey(declaration: SourceDeclaration) -> Survey:
    """The white cells of all fields. Group: the field.

    The type is the box's name. A box that is only called a white cell (WBC) has the type that `types.csv`
    (image,white_cells) gives for its field, if the field has one such box and one name there; else no type. Red cells
    and platelets are left out, unless `labels` has an entry for them. UserError for an unknown name.
    """
    cells, warnings = find_cells(declaration.root, declaration.labels)
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
        images.append(RawImage(path, label, cell_type or "", cell.field, declaration.domain, None))
    refuse_unknown(unknown, declaration.root, "name boxes after the cell types", declaration.labels)
    return Survey(images, [f"{declaration.name}: {warning}" for warning in warnings])


def has_annotated_fields(folder: Path) -> bool:
    """Whether a folder holds fields and boxes in the layout of Pascal VOC."""
    return next((folder / "Annotations").glob("*.xml"), None) is not None


def find_cells(root: Path, labels: Mapping[str, str]) -> tuple[list[Cell], list[str]]:
    """The boxes of all fields, sorted by path, but for red cells and platelets that `labels` does not name.

    Returns warnings for boxes without area, fields without a box and annotations without a field. UserError for a
    folder without images or cells, for two fields of one name, and for an annotation that cannot be read.
    """
    images, others = list_images(root)
    by_stem = _fields_by_stem(root, [path for path in images if not is_hidden(path)])
    annotations = [path for path in others if path.lower().endswith(".xml") and not is_hidden(path)]
    cells: list[Cell] = []
    empty, lost = 0, []
    for path in annotations:
        field = by_stem.get(PurePosixPath(path).stem)
        if field is None:
            lost.append(path)
            continue
        found = _read_annotation(on_disk(root, path), field)
        wanted = [cell for cell in found if cell.name in labels or plain(cell.name) not in _NO_WHITE_CELL]
        cells += [cell for cell in wanted if cell.region.width]
        empty += sum(not cell.region.width for cell in wanted)
    if not cells:
        raise UserError(f"{root}: no box of a white cell here; give a folder with Annotations/*.xml and their images")
    bare = sorted(set(by_stem.values()) - {cell.field for cell in cells})
    warnings = [
        f"{count} {what}"
        for count, what in (
            (empty, "box(es) without area left out"),
            (len(bare), f"field(s) without a box of a white cell ({', '.join(map(shown, bare[:3]))})"),
            (len(lost), f"annotation(s) without a field of the same name ({', '.join(map(shown, lost[:3]))})"),
        )
        if count
    ]
    return sorted(cells, key=lambda cell: (f"{cell.field}{cell.region}", cell.name)), warnings


def square_round(left: int, top: int, right: int, bottom: int, width: int, height: int) -> Region:
    """A square round a box in a field of width x height, pixels; of side 0 for a box without area.

    The box's longer side is CELL_SHARE of the square's. Near the border the square is moved inwards, so that it shows
    no invented pixels; it is at most as large as the field.
    """
    if right <= left or bottom <= top:
        return Region(0, 0, 0, 0)
    side = min(round(max(right - left, bottom - top) / CELL_SHARE), width, height)
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    return Region(min(max(x, 0), width - side), min(max(y, 0), height - side), side, side)


def _is_unnamed(cell: Cell, labels: Mapping[str, str]) -> bool:
    """Whether the box says only that this is a white cell."""
    return cell.name not in labels and plain(cell.name) in _WHITE_CELL


def _fields_by_stem(root: Path, images: list[str]) -> dict[str, str]:
    """Images by their names without suffix: those below a folder JPEGImages, where there is one (masks lie beside)."""
    by_stem: dict[str, str] = {}
    for path in [path for path in images if FIELDS_FOLDER in PurePosixPath(path).parts[:-1]] or images:
        other = by_stem.setdefault(PurePosixPath(path).stem, path)
        if other != path:
            raise UserError(f"{root}: '{shown(other)}' and '{shown(path)}' have the same name: rename one of them")
    return by_stem


def _read_annotation(path: Path, field: str) -> list[Cell]:
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        cells = []
        for box in root.iter("object"):
            left, top, right, bottom = (
                round(float(box.findtext(f"bndbox/{edge}", ""))) for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            square = square_round(left, top, right, bottom, width, height)
            cells.append(Cell(field, box.findtext("name", "").strip(), square))
    except (ElementTree.ParseError, ValueError, OverflowError, OSError) as error:
        raise UserError(f"{path}: not an annotation in Pascal VOC's format ({error}); mend or remove it") from None
    return cells


def _types(root: Path) -> dict[str, str]:
    """File name of a field -> the types that `types.csv` gives for its white cells, blank separated."""
    path = root / TYPES_FILE
    if not path.exists():
        return {}
    return {row["image"]: row["white_cells"] for _, row in read_csv(path, required=("image", "white_cells")).rows}
