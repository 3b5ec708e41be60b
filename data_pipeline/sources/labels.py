"""From the labels of a source to the twelve cell types."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from data_pipeline.cell_types import BARCELONA_FOLDERS, CELL_TYPES, MUNICH_CODES
from data_pipeline.errors import UserError
from data_pipeline.names import Names, plain, shown
from data_pipeline.sources.csv_files import read_csv
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, list_images, passed_over
from data_pipeline.sources.raw_images import RawImages

_KNOWN: dict[str, str] = {
    **{plain(folder): cell_type for folder, cell_type in BARCELONA_FOLDERS.items()},
    **{plain(code): cell_type for code, cell_type in MUNICH_CODES.items()},
    **{plain(cell_type): cell_type for cell_type in CELL_TYPES},
}


def cell_type_of(label: str, labels: Mapping[str, str]) -> str | None:
    """The cell type of a label: '' for unlabelled, None for an unknown label.

    First by the mapping: its exact entry, else the one cell type of all entries that match it (`Names.matches`). Then
    by the names of cell types, Barcelona's folders and Munich's codes, in `plain` form.
    """
    if label in labels:
        return labels[label]
    if label == "":
        return ""
    meant = {labels[known] for known in Names(labels).matches(label)}
    if meant:
        return meant.pop() if len(meant) == 1 else None
    return _KNOWN.get(plain(label))


def survey_images(
    declaration: SourceDeclaration,
    read: Callable[[str], tuple[str, str | None, str]],
    expected: Callable[[list[str]], str],
    microns_per_pixel: float | None = None,
    mapping: Mapping[str, str] = MappingProxyType({}),
) -> Survey:
    """Survey a folder of images. UserError names unknown labels.

    read: an image's path -> its label, its cell type (None: unknown label) and its group. expected: the paths of all
    images -> what the user is told to do about unknown labels. mapping: as in `refuse_unknown`.
    """
    paths, others = list_images(declaration.root)
    unknown: list[str] = []

    def each() -> Iterator[RawImage]:
        for path in paths:
            label, cell_type, group = read(path)
            image = RawImage(path, label, cell_type or "", group, declaration.domain, microns_per_pixel)
            if cell_type is None and not image.hidden:
                unknown.append(label)
            yield image

    images = RawImages.of(each())
    if unknown:
        refuse_unknown(unknown, declaration.root, expected(paths), mapping)
    return Survey(images, passed_over(others, declaration.name))


def refuse_unknown(
    labels: Iterable[str], where: Path, expected: str, mapping: Mapping[str, str] = MappingProxyType({})
) -> None:
    """UserError for unknown labels, if any, one for each image. mapping: the user's, whose entries may be meant."""
    counts = Counter(labels)
    if not counts:
        return
    most = counts.most_common(8)
    known = Names([*mapping, *CELL_TYPES])
    named = ", ".join(
        f"'{shown(label)}' ({count} image{'s' * (count != 1)}){known.hint(label)}" for label, count in most
    )
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    raise UserError(
        f"{where}: unknown label {named}{more}; {expected}, or write a CSV with the columns label,cell_type "
        f"and give it as labels=FILE (an empty cell_type keeps the images unlabelled; "
        f"cell types: {', '.join(CELL_TYPES)})"
    )


def read_label_mapping(path: Path) -> dict[str, str]:
    """Read a CSV with the columns label,cell_type; UserError names the wrong line."""
    mapping: dict[str, str] = {}
    for line, row in read_csv(path, required=("label", "cell_type")).rows:
        label, written = row["label"], row["cell_type"]
        cell_type = cell_type_of(written, {})
        if cell_type is None:
            raise UserError(
                f"{path}, line {line}: '{shown(written)}' is no cell type{Names(CELL_TYPES).hint(written)}; "
                f"use one of {', '.join(CELL_TYPES)}, or nothing to keep the images unlabelled"
            )
        if mapping.setdefault(label, cell_type) != cell_type:
            raise UserError(f"{path}, line {line}: '{shown(label)}' has another cell type further up; keep one of them")
    return mapping
