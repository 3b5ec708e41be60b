"""A page is a list of sections, a section a list of blocks; `write_page` makes one HTML file of them.

A new kind of score is a new list of blocks: nothing here knows what a classifier is.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from data_pipeline.disk import replace_through
from trainer.metrics.bootstrap import Estimate

_ENVIRONMENT = Environment(
    loader=PackageLoader("trainer.reports", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["kind"] = lambda block: type(block).__name__.lower()  # which part of the template shows it


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning is set off from the rest."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Tile:
    """A headline number with its label and, in small type, its interval."""

    label: str
    value: str
    interval: str


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Facts:
    """A list of `name: value` rows, one per line."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """An inline drawing (safe SVG markup) over its caption; `beside` others of its kind where there is room."""

    drawing: Markup
    caption: str
    beside: bool = False


@dataclass(frozen=True)
class Cell:
    """A table cell; shade 0..1 tints it, small is printed under the text."""

    text: str
    small: str = ""
    shade: float = 0.0
    wrong: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; the caption stands above it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    matrix: bool = False  # square, shaded cells


@dataclass(frozen=True)
class Card:
    """A picture with a title, a line under it, and one bar per cell type (see `gallery.confidence_bars`).

    marks: words after the title, such as "uncertain"; the card then has another border.
    """

    picture: Markup
    title: str
    bracket: str
    note: str
    bars: Markup
    wrong: bool = False
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Cards:
    caption: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Links:
    """A list of links to files beside the page; the one without an address is the page itself."""

    caption: str
    links: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Folded:
    """Preformatted text behind a summary line."""

    summary: str
    text: str


Block = Text | Tiles | Facts | Figure | Table | Cards | Links | Folded


@dataclass(frozen=True)
class Section:
    title: str
    intro: str
    blocks: Sequence[Block]


def estimate_cell(estimate: Estimate | None, factor: float = 100, digits: int = 1) -> Cell:
    """A value over its interval, in per cent by default; None: no value."""
    if estimate is None or estimate.value is None:
        return Cell("-")
    return Cell(estimate.format(factor=factor, digits=digits), estimate.interval(factor, digits))


def data_uri(image: Image.Image, kind: str, **options: Any) -> Markup:
    """A picture inside the page, for src=; kind: "png" or "jpeg". options: of Pillow's `save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Markup(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}")


def sheet_figure(path: Path, caption: str) -> Figure:
    """A PNG, inline, over its caption."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    picture = Markup('<img alt="{}" style="max-width:100%" src="data:image/png;base64,{}">').format(path.stem, encoded)
    return Figure(picture, caption, beside=True)


def configuration_section(run: Path) -> Section:
    """A run's config.yaml, folded away."""
    path = run / "config.yaml"
    if not path.is_file():
        return Section("Configuration", "config.yaml is missing from the run.", [])
    text = path.read_text(encoding="utf-8", errors="replace")
    return Section("Configuration", "As resolved when the run started.", [Folded("config.yaml", text)])


def write_page(path: Path, title: str, subtitle: str, blocks: Sequence[Block], sections: Sequence[Section]) -> Path:
    """Write one HTML file with everything inline, renamed into place whole; returns path.

    blocks stand above the table of contents, which is left out when there is one section or none.
    """
    return fill_template(path, "template.html", title=title, subtitle=subtitle, blocks=blocks, sections=sections)


def fill_template(path: Path, template: str, **values: Any) -> Path:
    """Write a template of this folder with its values, renamed into place whole; returns path."""
    replace_through(path, _ENVIRONMENT.get_template(template).render(**values).encode())
    return path
