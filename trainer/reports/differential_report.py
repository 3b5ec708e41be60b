"""The report of a differential count: a bar per type beside reference ranges, and the fields with their cells."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from PIL import ImageDraw

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.images import decode_rgb
from data_pipeline.sources.annotations import Box
from data_pipeline.sources.fields import WHITE_CELL
from trainer.metrics.differential import NOT_WHITE, Differential, Ranges, beside_reference
from trainer.reports.figures import INK, LINE, SERIES, new_drawing, svg
from trainer.reports.gallery import NO_PICTURE
from trainer.reports.page import (
    Block,
    Card,
    Cards,
    Cell,
    Figure,
    Links,
    Section,
    Table,
    Text,
    Tile,
    Tiles,
    data_uri,
    estimate_cell,
    write_page,
)

MOST_FIELDS = 240  # shown in all, about 40 kB each
_SIZE = 480  # pixels of a field's longer side
_CERTAIN, _UNCERTAIN, _OTHER = (0, 120, 60), (215, 80, 0), (120, 120, 120)


@dataclass(frozen=True)
class CountedField:
    """A field, what was found in it, and the names of its white cells."""

    path: Path
    group: str  # patient or slide
    boxes: tuple[Box, ...]  # all that were found
    named: tuple[tuple[Box, str, bool], ...]  # box, cell type, whether a person should look at it


def write_differential_report(
    out: Path,
    counts: Sequence[Differential],
    looks: Mapping[str, int],
    fields: Sequence[CountedField],
    ranges: Ranges,
    *,
    corrected: bool,
) -> Path:
    """Write out/report.html; returns its path. looks: cells of each group that a person should look at."""
    by_group: dict[str, list[CountedField]] = {each.group: [] for each in counts}
    for field in fields:
        by_group.setdefault(field.group, []).append(field)
    share = MOST_FIELDS // max(1, len(counts))
    sections = [
        _section(number, each, looks[each.group], by_group[each.group], ranges, share, corrected)
        for number, each in enumerate(counts)
    ]
    links = Links("Beside this page:", [("differential.csv", "differential.csv"), ("cells by type", "gallery.html")])
    limits = Text(
        "Not a diagnosis. Intervals hold the counting error; corrected shares also the classifier's confusions, as "
        "measured on the test images of its own training data. What another stain, camera or disease adds is in none."
    )
    subtitle = f"White cells: {sum(each.white_cells for each in counts)}. Patients or slides: {len(counts)}."
    return write_page(out / "report.html", "Differential count", subtitle, [links, limits], sections)


def _section(
    number: int,
    counted: Differential,
    look: int,
    fields: Sequence[CountedField],
    ranges: Ranges,
    most_fields: int,
    corrected: bool,
) -> Section:
    kinds = Counter(box.name for field in fields for box in field.boxes)
    others = [Tile(f"{kind}s found", str(count), "") for kind, count in sorted(kinds.items()) if kind != WHITE_CELL]
    tiles = [Tile("white cells counted", str(counted.white_cells), ""), Tile("to look at", str(look), ""), *others]
    blocks: list[Block] = [Tiles(tiles)]
    if counted.warning:
        blocks.insert(0, Text(f"{counted.warning}.", warning=True))
    name = f"differential-{number}"
    measured = "corrected share" if corrected else "share"
    caption = f"{measured.capitalize()} of each type among white cells, with its 95 % interval"
    blocks.append(
        Figure(_bars(counted, ranges, name, corrected), f"{caption}{'; grey: reference range' if ranges else ''}.")
    )
    blocks.append(_table(counted, ranges, corrected))
    if fields:
        blocks.append(_pictures(fields, most_fields))
    intro = f"{len(fields)} fields." if fields else "Images of single cells."
    return Section(counted.group, intro, blocks)


def _bars(counted: Differential, ranges: Ranges, name: str, corrected: bool) -> Markup:
    types = {kind: each for kind, each in counted.types.items() if kind not in NOT_WHITE}
    with new_drawing(0.8 + 0.36 * len(types)) as drawing:
        axes = drawing.subplots()
        axes.grid(axis="y", visible=False)
        for place, (kind, each) in enumerate(types.items()):
            estimate = each.corrected if corrected and each.corrected.value is not None else each.share
            if kind in ranges:
                low, high = ranges[kind]
                axes.barh(place, high - low, 0.8, left=low, color=LINE)
            if estimate.value is None:
                continue
            axes.barh(place, 100 * estimate.value, 0.45, color=SERIES[0])
            if estimate.low is not None and estimate.high is not None:
                axes.plot([100 * estimate.low, 100 * estimate.high], [place, place], color=INK, linewidth=1.4)
        axes.set_yticks(range(len(types)), list(types))
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("per cent of white cells")
        return svg(drawing, name)


def _table(counted: Differential, ranges: Ranges, corrected: bool) -> Table:
    head = ["type", "cells", "per cent", *(["corrected"] if corrected else []), *(["reference"] if ranges else [])]
    rows = []
    for kind, each in counted.types.items():
        row = [Cell(kind), Cell(str(each.count)), estimate_cell(each.share)]
        if kind in NOT_WHITE:
            per_hundred = f"{100 * each.count / counted.white_cells:.1f}" if counted.white_cells else "-"
            row[2] = Cell(per_hundred, "per 100 white cells")
        best = each.corrected if each.corrected.value is not None else each.share
        row += [estimate_cell(each.corrected)] if corrected else []
        if ranges:
            limits = ranges.get(kind)
            outside = beside_reference(None if best.value is None else 100 * best.value, *limits) if limits else ""
            words = f"{limits[0]:g} to {limits[1]:g}" if limits else "-"
            row.append(Cell(words, outside, shade=0.3 if outside else 0.0, wrong=bool(outside)))
        rows.append(row)
    caption = "Share of white cells with Wilson's 95 % interval (counting error)"
    adjusted = "; corrected by the classifier's confusion matrix, interval by bootstrap" if corrected else ""
    return Table(f"{caption}{adjusted}.", head, rows)


def _pictures(fields: Sequence[CountedField], most: int) -> Cards:
    """Fields with a cell to look at first."""
    ordered = sorted(fields, key=lambda field: -sum(look for _, _, look in field.named))
    caption = "Fields with their cells; orange: for a person to look at; grey: other kinds."
    if len(fields) > most:
        caption += f" {most} of {len(fields)} fields are shown, those with most such cells."
    cards = [
        Card(
            picture=_picture(field),
            title=f"{len(field.named)} white cell{'s' * (len(field.named) != 1)}",
            bracket="",
            note=field.path.name,
            bars=Markup(""),
            wrong=False,
            marks=("to look at",) if any(look for _, _, look in field.named) else (),
        )
        for field in ordered[:most]
    ]
    return Cards(caption, cards)


def _picture(field: CountedField) -> Markup:
    """The field with its boxes, as a small JPEG inside an <img>; a grey box where it cannot be read."""
    try:
        image = decode_rgb(field.path.read_bytes())
    except (OSError, UnreadableImage):
        return NO_PICTURE
    scale = min(1.0, _SIZE / max(image.size))
    image = image.resize((round(scale * image.width), round(scale * image.height)))
    draw = ImageDraw.Draw(image)

    def outline(box: Box, colour: tuple[int, int, int], words: str, width: int) -> None:
        edges = [scale * edge for edge in (box.left, box.top, box.right, box.bottom)]
        draw.rectangle(edges, outline=colour, width=width)
        if words:
            place = (edges[0] + 2, max(0, edges[1] - 21) if edges[1] > 21 else edges[1] + 3)
            draw.rectangle(draw.textbbox(place, words, font_size=18), fill=(255, 255, 255))
            draw.text(place, words, fill=colour, font_size=18)

    for box in field.boxes:
        if box.name != WHITE_CELL:
            outline(box, _OTHER, "", 1)
    for box, cell_type, look in field.named:
        outline(box, _UNCERTAIN if look else _CERTAIN, cell_type, 3)
    picture = data_uri(image, "jpeg", quality=80)
    return Markup('<img src="{}" alt="{}" loading="lazy" class="field">').format(picture, field.path.name)
