"""Folders of images: one folder per class, or no classes at all."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, partial

from data_pipeline.names import plain, shown
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, raw_layout
from data_pipeline.sources.identifiers import alike_warnings, canonical
from data_pipeline.sources.labels import cell_type_of, survey_images

# Folder names that are neither patients nor slides: parts of a data set, places for files, finer types.
_WORDS = """
    train training val valid validation dev test testing holdout all data dataset images image img imgs pictures photos
    raw original originals orig source crop crops cropped cell cells single augmented augmentation aug export exported
    new old good bad misc other others rest jpg jpeg png tif tiff bmp webp
    normal abnormal typical atypical reactive activated mature immature band bands banded segmented segment blast blasts
    large small giant variant variants
"""
_NO_GROUP = frozenset(_WORDS.split())
_IN_FILE_NAME = re.compile(r"(?<![a-z])(patient|pat|pt|subject|case|donor|slide|smear) ?[0-9]+")
_FOLD = re.compile(r"(fold|split|part) ?[0-9]+")


@raw_layout("folder", "one sub-folder per cell type", group_by_folder=True)
def survey_classes(declaration: SourceDeclaration) -> Survey:
    """Images below ROOT/<label>/. Group: a sub-folder of the label (`group_of`)."""
    cell_type = cache(partial(cell_type_of, labels=declaration.labels))

    def read(path: str) -> tuple[str, str | None, str]:
        label, _, below = path.rpartition("/")[0].partition("/")
        # An image outside the class folders has no label, unless the mapping has an entry for ''.
        known = cell_type(label) if label or "" in declaration.labels else None
        return label, known, group_of(below, declaration)

    found = survey_images(declaration, read, _expected, mapping=declaration.labels)
    return Survey(found.images, found.warnings + _group_warnings(found.images, declaration))


@raw_layout("unlabelled", "any images below RAW: they serve the stain models", group_by_folder=True)
def survey_unlabelled(declaration: SourceDeclaration) -> Survey:
    """Every image below ROOT, without a label. Group: a folder (`group_of`)."""
    found = survey_images(declaration, lambda path: ("", "", group_of(path.rpartition("/")[0], declaration)), _expected)
    return Survey(found.images, found.warnings + _group_warnings(found.images, declaration))


def group_of(folders: str, declaration: SourceDeclaration) -> str:
    """The group that an image's folders (posix, below that of its label) name; '' for none.

    A function of the image's own path, so that more images never move it. auto: the first folder whose name is not in
    _NO_GROUP, a fold or a cell type.
    """
    if declaration.group not in ("auto", "folder"):
        return ""
    names = folders.split("/")
    return _group_name(names[0] if declaration.group == "folder" else next(filter(_may_be_group, names), ""))


@cache
def _may_be_group(folder: str) -> bool:
    name = plain(folder)
    return bool(name) and name not in _NO_GROUP and not _FOLD.fullmatch(name) and cell_type_of(folder, {}) is None


def _group_name(folder: str) -> str:
    """One name for all spellings of a folder: the same patient has a folder below each type."""
    name = plain(canonical(folder))
    return f"folder {name}" if name else ""


def _group_warnings(images: Sequence[RawImage], declaration: SourceDeclaration) -> list[str]:
    """Which sub-folders count as patients or slides by default, or do not in an older data set."""
    if declaration.group == "none":
        return []
    named = {image.group.removeprefix("folder ") for image in images if image.group and not image.hidden}
    alike = [f"{declaration.name}: {warning}" for warning in alike_warnings(named, "sub-folder")]
    if declaration.group == "folder":
        return alike
    depth = 1 if declaration.kind == "folder" else 0
    counts: Counter[str] = Counter()
    labels: dict[str, set[str]] = defaultdict(set)
    unnamed = 0
    for image in images:
        folder = next(filter(_may_be_group, image.path.split("/")[depth:-1]), "")
        name = "" if image.hidden else _group_name(folder)
        unnamed += bool(folder) and not name and not image.hidden
        if name:
            counts[name] += 1
            labels[name].add(image.source_label)
    warnings = alike + _named_in_files(images, declaration)
    if unnamed:
        warnings.append(
            f"{declaration.name}: {unnamed} image(s) lie in sub-folders whose names say that nobody knows whose they "
            "are: each is a group of its own"
        )
    if max(counts.values(), default=0) < 2:
        return warnings
    names = ", ".join(shown(name.removeprefix("folder ")) for name in sorted(counts)[:4])
    listed = f"{len(counts)} sub-folder(s) ({names}{', ...' if len(counts) > 4 else ''})"
    if declaration.group is None:
        return [
            *warnings,
            f"{declaration.name}: {listed} look like patients or slides, and their images lie in several splits, as "
            "when this source was declared; declare it again with group=folder to keep each on one side (that moves "
            "images to other splits, so train anew), or with group=none if they are neither",
        ]
    spread = sum(len(found) > 1 for found in labels.values())
    finer = not spread and depth > 0
    doubt = " None is found below two cell types: if they are finer types, say group=none." if finer else ""
    return [
        *warnings,
        f"{declaration.name}: {listed} are taken for patients or slides: the images of each stay on one side of the "
        f"split. Say group=folder if that is right, group=none if they are neither.{doubt}",
    ]


def _named_in_files(images: Iterable[RawImage], declaration: SourceDeclaration) -> list[str]:
    """A warning for file names that seem to name patients or slides (patient01_cell3.png)."""
    alone = [image.path.rpartition("/")[2] for image in images if not image.group and not image.hidden]
    found = Counter(match.group() for name in alone if (match := _IN_FILE_NAME.search(plain(name))))
    if len(found) < 2 or len(found) * 2 > len(alone):
        return []
    return [
        f"{declaration.name}: file names look as if they named patients or slides ('{shown(min(found))}', "
        f"{len(found)} in all), and their images lie in several splits: list the images in a table with a column "
        "patient or slide"
    ]


def _expected(paths: Iterable[str]) -> str:
    """What to do about unknown class folders; says so when the types are one folder deeper."""
    parts = [path.split("/") for path in paths]
    below = [names for names in parts if len(names) > 2 and cell_type_of(names[1], {})]
    deeper = [names for names in below if not cell_type_of(names[0], {})]
    if len(deeper) * 2 > len(parts):
        return (
            f"'{shown(deeper[0][1])}' below it is a cell type: put the type's folder above the patient's "
            "(type/patient/image), or list the images in a table with a column patient"
        )
    return "name the class folders after the cell types"
