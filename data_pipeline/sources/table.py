"""A CSV table of images: image,label and, where they are known, patient, slide and domain."""

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.errors import UserError
from data_pipeline.ingest.regions import region_of, split_region
from data_pipeline.names import Names, difference, plain, shown
from data_pipeline.parts import in_parts
from data_pipeline.sources.csv_files import CsvRows, read_csv
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, check_domain, raw_layout
from data_pipeline.sources.identifiers import canonical, identifier_warnings
from data_pipeline.sources.labels import cell_type_of, refuse_unknown
from data_pipeline.sources.raw_images import RawImages

_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_REQUIRED, _OPTIONAL = ("image", "label"), ("patient", "slide", "domain")
# Other column names for patient and slide, compared in `plain` form.
_OTHER_WORDS = {
    "patient": "patient id|patientid|patients|patient number|patient no|pid|subject|subject id|case|case id|donor",
    "slide": "slide id|slideid|slides|slide number|slide no|smear|specimen|sample id|wsi",
}


@dataclass(frozen=True)
class _Line:
    """A row of the table whose image was found."""

    number: int  # of the line
    row: dict[str, str]
    path: str  # as on the disk

    def __getitem__(self, column: str) -> str:
        return self.row.get(column, "")


@dataclass(frozen=True)
class _Lines:
    """The rows of a table with their files."""

    rows: CsvRows
    paths: pa.ChunkedArray  # one text a row

    def __iter__(self) -> Iterator[_Line]:
        paths = (path for part in self.paths.chunks for path in part.to_pylist())
        for (number, row), path in zip(self.rows, paths, strict=True):
            yield _Line(number, row, path)


@raw_layout("table", "a CSV: image,label[,patient,slide,domain]", is_file=True)
def survey(declaration: SourceDeclaration) -> Survey:
    """The images a table lists. Paths count from the table's folder; an empty label means unlabelled.

    An image may be a region of a file (`split_region`). Group: the patient, else the slide, else the image itself or
    the file that it is a region of, inside this source: `7` in another table is another person. Spellings of one
    identifier are one (`canonical`), unless the declaration is of an older data set. A row's domain goes before the
    declared one. UserError names the wrong line.
    """
    merged = declaration.group is not None
    # Older data sets ignored a column `Patient`: reading it as patient would move images to other splits.
    table = read_csv(declaration.root, _REQUIRED, _OPTIONAL if merged else ())
    if not table.rows:
        raise UserError(f"{declaration.root}: no image in this table; give it a line for each image")
    lines = _Lines(table.rows, _found_images(declaration, table.rows))
    read_label = cache(partial(cell_type_of, labels=declaration.labels))
    known = cache(canonical) if merged else str
    unknown: list[str] = []

    def each() -> Iterator[RawImage]:
        for line in lines:
            if line["domain"]:
                check_domain(line["domain"], f"{declaration.root}, line {line.number}")
            patient, slide = known(line["patient"]), known(line["slide"])
            field = split_region(line.path)[0] if region_of(line.path) else ""
            group = f"patient {patient}" if patient else f"slide {slide}" if slide else field and f"field {field}"
            cell_type = read_label(line["label"])
            domain = line["domain"] or declaration.domain
            yield RawImage(line.path, line["label"], cell_type or "", group, domain, None, listed=True)
            if cell_type is None:
                unknown.append(line["label"])

    images = RawImages.of(each())
    refuse_unknown(unknown, declaration.root, "write cell types in the column label", declaration.labels)
    warnings = [
        *table.warnings,
        *_column_warnings(table.columns),
        *_name_warnings(lines),
        *_group_warnings(lines, images, table.columns, merged),
    ]
    prefixed = [f"{declaration.name}: {warning}" for warning in warnings]
    return Survey(images.by_path(), prefixed)


def _found_images(declaration: SourceDeclaration, rows: CsvRows) -> pa.ChunkedArray:
    """The file of each row; UserError for the first row whose file is missing or ambiguous."""
    folder = str(declaration.folder)
    files = ListedFiles(folder)
    missing: list[tuple[int, str]] = []

    def find(number: int, row: dict[str, str]) -> str:
        where = f"{declaration.root}, line {number}"
        if not row["image"]:
            raise UserError(f"{where}: no image named; fill the column image")
        file, region = split_region(row["image"])
        found = files.find(file)
        if len(found) > 1:
            several = " or ".join(f"'{shown(path)}'" for path in found[:3])
            raise UserError(f"{where}: '{shown(row['image'])}' can be {several}; write the one that is meant, exactly")
        if not found:
            missing.append((number, file))
            return ""
        return f"{found[0]}{region or ''}"

    parts = [pa.array([find(*row) for row in some], pa.large_string()) for some in in_parts(rows)]
    if missing:
        number, written = missing[0]
        raise UserError(
            f"{declaration.root}, line {number}: no such image {shown(written)} ({len(missing)} of {len(rows)} "
            f"missing){files.hint(written)}; paths count from {folder}"
        )
    return pa.chunked_array(parts, pa.large_string())


class ListedFiles:
    """Finds files by paths as people write them: relative to a folder, or absolute."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._listings: dict[str, Names] = {}

    def find(self, written: str) -> list[str]:
        """Paths of the files that can be meant: one, none, or several that cannot be told apart.

        The path as written comes first; then names that match it, folder by folder (`Names.matches`), and '\\' for '/'.
        """
        path = posixpath.normpath(written)
        if os.path.isfile(os.path.join(self._folder, path)):
            return [path]
        found: list[str] = ["/" if written.startswith("/") else ""]
        for part in posixpath.normpath(written.replace("\\", "/")).split("/"):
            if not part:
                continue
            if part in (".", ".."):
                found = [posixpath.join(start, part) for start in found]
            else:
                found = [posixpath.join(start, name) for start in found for name in self._inside(start).matches(part)]
        return [path for path in found if os.path.isfile(os.path.join(self._folder, path))]

    def hint(self, written: str) -> str:
        """' (...)' on what a path that was not found may mean; '' where nothing is near."""
        if _WINDOWS_PATH.match(written):
            return " (a path of a Windows machine: write it from the table's folder)"
        folder, _, name = posixpath.normpath(written.replace("\\", "/")).rpartition("/")
        start = folder or ("/" if written.startswith("/") else "")
        if not os.path.isdir(os.path.join(self._folder, start)):
            return f" (there is no folder '{shown(start)}')"
        inside = self._inside(start)
        by_stem = [known for known in inside if posixpath.splitext(known)[0] == name]
        if by_stem:
            return f" (there is '{shown(by_stem[0])}': write the suffix)"
        return inside.hint(name)

    def _inside(self, folder: str) -> Names:
        """The names in a folder; none if it cannot be listed."""
        if folder not in self._listings:
            try:
                names = os.listdir(os.path.join(self._folder, folder))
            except (OSError, ValueError):
                names = []
            self._listings[folder] = Names(names)
        return self._listings[folder]


def _column_warnings(columns: list[str]) -> list[str]:
    ignored = [column for column in columns if column not in (*_REQUIRED, *_OPTIONAL)]
    if not ignored:
        return []
    hints = [
        f"; rename '{shown(column)}' to {meant} if it names one, so that its images stay in one split"
        for column in ignored
        for meant, words in _OTHER_WORDS.items()
        if meant not in columns and (plain(column) in (meant, *words.split("|")) or Names([meant]).hint(column))
    ]
    return [f"column(s) not used: {', '.join(map(shown, ignored))}{''.join(hints)}"]


def _name_warnings(lines: _Lines) -> list[str]:
    """A warning for files whose names only match the listed ones."""
    other, what, first = 0, "", ""
    for line in lines:
        written, there = posixpath.normpath(line["image"].replace("\\", "/")), line.path.replace("\\", "/")
        if written != there:
            what, first = (what, first) if other else (difference(written, there), there)
            other += 1
    if not other:
        return []
    return [f"{other} image(s) found under a name that differs in {what} (the first: '{shown(first)}')"]


def _group_warnings(lines: _Lines, images: RawImages, columns: list[str], merged: bool) -> list[str]:
    """Warnings for identifiers of patients and slides that look wrong or contradict each other."""
    warnings = []
    if "patient" in columns:
        # An image without a patient has its slide's group: then nothing is missing.
        patients = Counter(line["patient"] for line in lines if line["patient"] or not canonical(line["slide"]))
        warnings += identifier_warnings(patients, "patient", merged)
    if "slide" in columns:
        # Where the patient is known, the slide does not matter.
        slides = Counter(line["slide"] for line in lines if line["slide"] and not canonical(line["patient"]))
        warnings += identifier_warnings(slides, "slide", merged)
    patients_of: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if slide := canonical(line["slide"]):
            patients_of[slide].add(canonical(line["patient"]))
    shared = [slide for slide, patients in patients_of.items() if len(patients - {""}) > 1]
    if shared:
        warnings.append(
            f"slide '{shown(shared[0])}' is of several patients ({_listed(patients_of[shared[0]])}); "
            f"{len(shared)} such slide(s): their images go with the patients, maybe to several splits; "
            "correct the table if it is one slide"
        )
    half = [slide for slide, patients in patients_of.items() if "" in patients and len(patients) > 1]
    if half:
        warnings.append(
            f"slide '{shown(half[0])}' has images with a patient ({_listed(patients_of[half[0]])}) and without; "
            f"{len(half)} such slide(s): they may lie in different splits; fill the column patient"
        )
    return warnings + _listed_twice(lines, images)


def _listed_twice(lines: _Lines, images: RawImages) -> list[str]:
    """Warnings for files with several lines, those with contradicting patients apart."""
    counts = lines.paths.value_counts()
    several = set(counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist())
    of_path: dict[str, list[tuple[int, str]]] = {}  # lines and groups
    if several:
        for line, image in zip(lines, images, strict=True):
            if line.path in several:
                of_path.setdefault(line.path, []).append((line.number, image.group))
    warnings = []
    for contradict in (False, True):
        found = {
            path: places for path, places in of_path.items() if (len({group for _, group in places}) > 1) == contradict
        }
        if found:
            path, places = next(iter(found.items()))
            numbers = " and ".join(str(number) for number, _ in places[:3])
            of = "of different patients or slides" if contradict else "by the same patient and slide"
            warnings.append(
                f"{len(found)} file(s) listed more than once, {of} (the first: '{shown(path)}', "
                f"lines {numbers}): one line of each counts; {'correct' if contradict else 'delete'} the others"
            )
    return warnings


def _listed(names: set[str]) -> str:
    return ", ".join(f"'{shown(name)}'" for name in sorted(names - {""})[:3])
