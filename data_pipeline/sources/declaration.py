"""What a source of raw images is, what it returns, and the registry of the layouts that can be read."""

from __future__ import annotations

import importlib
import math
import os
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from data_pipeline.cell_types import PromyelocyteReading
from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import printable

# auto: what the layout says of patients and slides; folder: the first sub-folder is one; none: each image is its own.
GroupRule = Literal["auto", "folder", "none"]
AnnotationFormat = Literal["voc", "coco", "csv"]
# By name alone: a text file called .jpg is an unreadable image, not a text file.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
# Names become parts of file names (shards, scores).
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class SourceDeclaration:
    """One ingest unit: where raw images are and how to read their labels."""

    kind: str  # keyword of the layout
    name: str
    root: Path  # folder of the images, or the file that lists them
    domain: str  # the stain
    labels: Mapping[str, str] = field(default_factory=dict)  # the source's own labels -> cell types, '' for unlabelled
    promyelocytes: PromyelocyteReading = "immature granulocyte"
    # How patients and slides are read. None, in data sets older than this choice: a table's identifiers as they are
    # written, no sub-folders, so that no image changes its split.
    group: GroupRule | None = "auto"
    annotations: AnnotationFormat = "voc"  # of fields with boxes
    side_microns: float | None = None  # of the squares that cells are cut in; None: by their boxes
    microns_per_pixel: float | None = None  # of fields whose annotation does not say it

    @property
    def folder(self) -> Path:
        """The folder that the paths of this source are relative to."""
        return self.root.parent if layouts()[self.kind].is_file else self.root

    def to_json(self) -> dict[str, Any]:
        stored: dict[str, Any] = {
            "kind": self.kind,
            "name": self.name,
            "root": str(self.root),
            "domain": self.domain,
            "labels": dict(sorted(self.labels.items())),
            "promyelocytes": self.promyelocytes,
        }
        if layouts()[self.kind].annotated and self.annotations != "voc":  # in older data sets it was the only one
            stored["annotations"] = self.annotations
        sizes = {"side_microns": self.side_microns, "microns_per_pixel": self.microns_per_pixel}
        stored |= {name: value for name, value in sizes.items() if value is not None}
        return stored if layouts()[self.kind].public or self.group is None else {**stored, "group": self.group}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SourceDeclaration:
        return cls(**{"group": None, **stored, "root": Path(stored["root"])})

    def as_remembered(self, before: SourceDeclaration | None) -> SourceDeclaration:
        """This declaration; where it leaves the rule for groups open, with the rule of the earlier declaration."""
        if before is None or self.group != "auto" or not {self.kind, before.kind} <= layouts().keys():
            return self
        new, old = layouts()[self.kind], layouts()[before.kind]
        same = new is old and not new.public
        return replace(self, group=before.group) if same or (new.group_by_folder and old.group_by_folder) else self


@dataclass(frozen=True, slots=True)
class RawImage:
    """A raw file before its content is read."""

    path: str  # relative to the source's folder, posix, as `printable` gives it
    source_label: str  # the label in the source's own words
    cell_type: str  # one of CELL_TYPES, or '' for unlabelled
    group: str  # patient, slide or original inside this source; '' for a group of its own
    domain: str
    microns_per_pixel: float | None
    listed: bool = field(default=False, compare=False)  # named one by one by the user: wanted, even if hidden

    @property
    def hidden(self) -> bool:
        return not self.listed and is_hidden(self.path)


@dataclass(frozen=True)
class Survey:
    """What was found under a declaration."""

    images: Sequence[RawImage]  # sorted by path; of many images, `RawImages` takes the least memory
    warnings: list[str]  # one line each


@dataclass(frozen=True)
class RawLayout:
    """A layout of raw images; `raw_layout` registers it."""

    keyword: str  # build_shards.py KEYWORD=PATH
    help: str  # its line of --help
    survey: Callable[[SourceDeclaration], Survey]
    public: bool = False  # a known data set, named after the keyword; else the user gives name= and domain=
    licence: str = ""  # of a public data set, and its citation, for model cards
    is_file: bool = False  # PATH is a file that lists the images; else it is their folder
    annotated: bool = False  # annotations= says in which format boxes round cells are written
    group_by_folder: bool = False  # group= says whether sub-folders name patients or slides
    group_of: Callable[[str], str] | None = None  # the group that a path alone tells; an audit computes it again

    @property
    def usage(self) -> str:
        return f"{self.keyword}={'FILE' if self.is_file else 'RAW'}"


_REGISTERED: dict[str, RawLayout] = {}
SurveyFunction = Callable[[SourceDeclaration], Survey]


def raw_layout(keyword: str, help: str, **options: Any) -> Callable[[SurveyFunction], SurveyFunction]:
    """Register the decorated function as the survey of a layout; options: as in `RawLayout`."""

    def register(survey: SurveyFunction) -> SurveyFunction:
        if keyword in _REGISTERED:
            raise ValueError(f"two raw layouts are called {keyword}")
        _REGISTERED[keyword] = RawLayout(keyword, help, survey, **options)
        return survey

    return register


@cache
def layouts() -> Mapping[str, RawLayout]:
    """All layouts by keyword, public data sets first. Imports every module of this folder: each registers its own."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_REGISTERED.items(), key=lambda item: (not item[1].public, item[0])))


def check_declaration(declaration: SourceDeclaration) -> None:
    """UserError unless layout, name, domain and options can be used and the root is there."""
    where = f"source {declaration.name!r}"
    layout = layouts().get(declaration.kind)
    if layout is None:
        raise UserError(f"{where}: unknown kind {declaration.kind!r}; use one of {', '.join(layouts())}")
    if not _NAME.fullmatch(declaration.name):
        raise UserError(f"source name {declaration.name!r}: use letters, digits, '_', '.' and '-' only")
    check_domain(declaration.domain, where)
    readings = get_args(PromyelocyteReading)
    if declaration.promyelocytes not in readings:
        raise UserError(
            f"{where}: promyelocytes={declaration.promyelocytes!r}; use one of {', '.join(map(repr, readings))}"
        )
    if declaration.group not in (None, *get_args(GroupRule)):
        raise UserError(f"{where}: group={declaration.group}; use one of {', '.join(get_args(GroupRule))}")
    if layout.is_file:
        if declaration.group in ("folder", "none"):
            raise UserError(
                f"{where}: group={declaration.group} goes with folders of images; "
                "a table names patients and slides in its columns patient and slide"
            )
        if not declaration.root.is_file():
            raise UserError(f"{declaration.root}: no such file ({where}); name a CSV table")
    elif not declaration.root.is_dir():
        raise UserError(f"{declaration.root}: no such folder ({where}); check the path")


def check_domain(domain: str, where: str) -> None:
    """UserError unless the domain's name can be part of a file name."""
    if not _NAME.fullmatch(domain):
        raise UserError(f"{where}: domain {domain!r}: use letters, digits, '_', '.' and '-', at least one")


def check_scale(side_microns: float | None, microns_per_pixel: float | None) -> None:
    """ValueError for a given number that is no length."""
    for name, value in (("side_microns", side_microns), ("microns_per_pixel", microns_per_pixel)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}={value:g}: must be a number above 0")


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """All files below a folder: images by their suffix, and the others; relative posix paths (`printable`), sorted.

    Follows links to folders, each folder once. UserError for a folder without images or that cannot be listed.
    """
    images: list[str] = []
    others: list[str] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot list this folder ({error.strerror}); make it readable")

    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in files:
            path = printable(Path(here, name).relative_to(folder).as_posix())
            (images if Path(name).suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    if not images:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{folder}: no image in this folder or below it; give a folder with {suffixes} files")
    return sorted(images), sorted(others)


def is_hidden(path: str) -> bool:
    """Whether the file or a folder above it is hidden: a system file that only looks like an image."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def passed_over(others: list[str], name: str) -> list[str]:
    """The warning for files without an image's suffix, if there are any."""
    if not others:
        return []
    examples = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return [f"{name}: {len(others)} file(s) without an image's suffix passed over ({examples})"]
