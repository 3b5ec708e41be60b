"""What a source of raw images is, and what it hands over."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from data_pipeline.cell_types import PromyelocyteReading
from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import printable

SourceKind = Literal["barcelona", "munich", "folder", "table", "unlabelled"]
# The sources that the user declares by name, whose groups are read by a rule.
NAMED_KINDS = ("folder", "table", "unlabelled")
# auto: what the layout says of patients and slides; folder: the first sub-folder is one; none: each image is its own.
GroupRule = Literal["auto", "folder", "none"]

# By its name alone: a text file called .jpg is an image that cannot be read, not a text file.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})

# Names become parts of file names (shards, scores), so they keep to what every file system takes.
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class SourceDeclaration:
    """One ingest unit: where raw images lie and how to read their labels.

    `root` is the folder of the images; for a table it is the CSV file, and paths count from its folder.
    `labels` maps the source's own label names to cell types ('' keeps the image, unlabelled).
    `group`: how patients and slides are read. None, in data sets of before there was a choice: a table's identifiers
    as they are written, and no sub-folders, so that none of their images changes its split.
    """

    kind: SourceKind
    name: str
    root: Path
    domain: str
    labels: Mapping[str, str] = field(default_factory=dict)
    promyelocytes: PromyelocyteReading = "immature granulocyte"
    group: GroupRule | None = "auto"

    @property
    def folder(self) -> Path:
        """The folder that the paths of this source are relative to."""
        return self.root.parent if self.kind == "table" else self.root

    def to_json(self) -> dict[str, Any]:
        stored = {
            "kind": self.kind,
            "name": self.name,
            "root": str(self.root),
            "domain": self.domain,
            "labels": dict(sorted(self.labels.items())),
            "promyelocytes": self.promyelocytes,
        }
        ruled = self.kind in NAMED_KINDS and self.group is not None
        return {**stored, "group": self.group} if ruled else stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SourceDeclaration:
        return cls(**{"group": None, **stored, "root": Path(stored["root"])})

    def as_remembered(self, before: SourceDeclaration | None) -> SourceDeclaration:
        """This declaration of a source; where it leaves the rule for groups open, with that of the one before it."""
        kinds = {self.kind, before.kind} if before else set()
        open_again = self.group == "auto" and (kinds <= {"folder", "unlabelled"} or kinds == {"table"})
        return replace(self, group=before.group) if before and open_again else self


@dataclass(frozen=True, slots=True)
class RawImage:
    """A file that came in, before anything has looked inside it."""

    path: str  # relative to the source's folder, posix, as `printable` gives it
    source_label: str  # the label in the source's own words
    cell_type: str  # one of CELL_TYPES, or '' for unlabelled
    group: str  # patient, slide or original inside this source; '' for a group of its own
    domain: str
    microns_per_pixel: float | None
    listed: bool = field(default=False, compare=False)  # one by one, by the user: wanted, wherever it lies

    @property
    def hidden(self) -> bool:
        """As `is_hidden` says, unless it was named one by one: a listed file is wanted."""
        return not self.listed and is_hidden(self.path)


@dataclass(frozen=True)
class Survey:
    """What was found under a declaration: the images, by path, and one line for whatever was passed over."""

    images: list[RawImage]
    warnings: list[str]


def check_declaration(declaration: SourceDeclaration) -> None:
    """UserError unless kind, name and domain can be used and the root is there."""
    if declaration.kind not in get_args(SourceKind):
        kinds = ", ".join(get_args(SourceKind))
        raise UserError(f"source {declaration.name!r}: unknown kind {declaration.kind!r}; use one of {kinds}")
    if not _NAME.fullmatch(declaration.name):
        raise UserError(f"source name {declaration.name!r}: use letters, digits, '_', '.' and '-' only")
    check_domain(declaration.domain, f"source {declaration.name!r}")
    readings = get_args(PromyelocyteReading)
    if declaration.promyelocytes not in readings:
        raise UserError(
            f"source {declaration.name!r}: promyelocytes={declaration.promyelocytes!r}; "
            f"use one of {', '.join(map(repr, readings))}"
        )
    if declaration.group not in (None, *get_args(GroupRule)):
        raise UserError(
            f"source {declaration.name!r}: group={declaration.group}; use one of {', '.join(get_args(GroupRule))}"
        )
    if declaration.kind == "table":
        if declaration.group in ("folder", "none"):
            raise UserError(
                f"source {declaration.name!r}: group={declaration.group} goes with folders of images; "
                "a table names patients and slides in its columns patient and slide"
            )
        if not declaration.root.is_file():
            raise UserError(f"{declaration.root}: no such file (source {declaration.name!r}); name a CSV table")
    elif not declaration.root.is_dir():
        raise UserError(f"{declaration.root}: no such folder (source {declaration.name!r}); check the path")


def check_domain(domain: str, where: str) -> None:
    """UserError unless the domain's name can stand in a file name."""
    if not _NAME.fullmatch(domain):
        raise UserError(f"{where}: domain {domain!r}: use letters, digits, '_', '.' and '-', at least one")


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """All files below a folder, as sorted relative posix paths: those that are images by name, and the rest.

    Names as `printable` gives them. Links to folders are followed, each folder once. UserError for a folder without
    images and for one that may not be listed.
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
    """Whether the file, or a folder above it, is hidden: system litter that only looks like an image."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def passed_over(others: list[str], name: str) -> list[str]:
    """The warning for files that are no images by their names, if there are any."""
    if not others:
        return []
    examples = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return [f"{name}: {len(others)} file(s) without an image's suffix passed over ({examples})"]
