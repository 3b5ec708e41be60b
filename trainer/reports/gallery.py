"""Galleries of cells with the model's answers and heat maps (figures 55 to 57)."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from data_pipeline.errors import UnreadableImage, UserError
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.images import decode_rgb
from data_pipeline.ingest.regions import file_of, region_of
from data_pipeline.progress_bar import progress_bar
from trainer.metrics.evaluation import HEAT, PROBABILITY, SET, UNFAMILIAR
from trainer.metrics.uncertainty import UNFAMILIARITY
from trainer.reports.page import Block, Card, Cards, Cell, Links, Section, Table, Text, data_uri, write_page

CARDS_PER_PAGE = 240  # about 2 MB
MAX_PAGES = 100
_SIZE = 144  # pixels; about 5 kB as JPEG
_HEAT_SIZE = 72  # smooth, so half as fine; about 3 kB as PNG
_GREEN = (0, 215, 90)  # the one hue that no stain of blood has
NO_PICTURE = Markup('<div class="nothing">picture not available</div>')
HEAT_WORDS = (
    "Green: where the classifier found its answer, strongest at the place that supports it most (Grad-CAM); under the "
    "pointer a picture is bare."
)

_UNFAMILIAR_MARK = "out of distribution"
_UNCERTAINTY_WORDS = (
    "Out of distribution: further from the training images (unfamiliarity above 1) than 99 % of the validation images; "
    "the answer may mean nothing. Set: the types that the image may be, at the coverage that was asked for."
)


def confidence_bars(probabilities: Sequence[float], predicted: int, true: int | None) -> Markup:
    """One bar per type, numbered as in figures 55 and 56; the true type blue, a wrong prediction red."""
    step, height = 12, 34
    parts = [f'<path class="base" d="M0 {height + 0.5}H{step * len(probabilities)}"/>']
    for index, probability in enumerate(probabilities):
        tall = max(0.0, min(1.0, float(probability))) * height
        kind = ""
        if index == true or (true is None and index == predicted):
            kind = " is-true"
        elif index == predicted:
            kind = " is-false"
        if tall >= 0.2:
            bar = f'x="{index * step + 1.5}" y="{height - tall:.1f}" width="{step - 3}" height="{tall:.1f}"'
            parts.append(f'<rect class="bar{kind}" {bar}/>')
        parts.append(f'<text class="tick" x="{(index + 0.5) * step}" y="{height + 9}">{index}</text>')
    box = f'viewBox="0 0 {step * len(probabilities)} {height + 11}"'
    return Markup(f'<svg {box} role="img" aria-label="confidence in each type">{"".join(parts)}</svg>')


def type_numbers(cell_types: Sequence[str]) -> str:
    """'0 basophil, 1 eosinophil, ...': the key to the bars' numbers."""
    return ", ".join(f"{index} {cell_type}" for index, cell_type in enumerate(cell_types))


def prediction_card(
    probabilities: Sequence[float],
    cell_types: Sequence[str],
    true_type: str,
    picture: Markup,
    note: str,
    marks: Sequence[str] = (),
) -> Card:
    """'Neutrophil 71 % (Basophil)': predicted type, confidence, in brackets the true type ('' unknown)."""
    predicted = max(range(len(cell_types)), key=lambda index: probabilities[index])
    true = cell_types.index(true_type) if true_type in cell_types else None
    return Card(
        picture=picture,
        title=f"{cell_types[predicted].capitalize()} {_percent(probabilities[predicted])}",
        bracket=true_type.capitalize(),
        note=note,
        bars=confidence_bars(probabilities, predicted, true),
        wrong=bool(true_type) and true_type != cell_types[predicted],
        marks=marks,
    )


def write_prediction_gallery(frame: pd.DataFrame, out: Path, *, middle_square: bool = False) -> Path:
    """Write out/gallery.html for pictures without (or with) known types; returns its path.

    frame columns: path (of an image file, as `printable` gives it), type, confidence, a "p:<type>" column per type,
    and optionally cell_type (the true type, '' unknown), uncertain (bool), unfamiliarity, out_of_distribution (bool)
    and set together, and heat (bytes, as grad_cam.py gives them; with middle_square, of each picture's middle square).
    The cells stand by predicted type, least certain first,
    CARDS_PER_PAGE to a file: gallery.html, gallery-002.html, ... Beyond MAX_PAGES files the most certain
    cells of each type are left out, and the page says so. Files of an earlier gallery in `out` are replaced.
    Raises UserError when the folder cannot be written.
    """
    cell_types = [name.removeprefix(PROBABILITY) for name in frame.columns if name.startswith(PROBABILITY)]
    shown = _shown(frame)
    parts = [shown[start : start + CARDS_PER_PAGE] for start in range(0, max(1, len(shown)), CARDS_PER_PAGE)]
    names = ["gallery.html"] + [f"gallery-{number:03d}.html" for number in range(2, len(parts) + 1)]
    labels = [_page_label(number, rows) for number, rows in enumerate(parts, start=1)] if len(parts) > 1 else []
    counts = _count_table(frame, cell_types)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("gallery-[0-9][0-9][0-9].html"):
            old.unlink()
        with progress_bar(len(shown), "gallery", "image") as progress:
            for number, (name, rows) in enumerate(zip(names, parts, strict=True), start=1):
                above: list[Block] = [counts] if number == 1 else []
                if len(shown) < len(frame):
                    words = f"{len(shown)} of {len(frame)} images are shown; predictions.csv has all."
                    above.append(Text(words, warning=True))
                if labels:
                    others = ("" if other == name else other for other in names)
                    above.append(Links("Pages:", list(zip(labels, others, strict=True))))
                sections = _sections_by_type(rows, cell_types, middle_square, progress)
                subtitle = f"{len(frame)} images; page {number} of {len(parts)}; least certain first in each type"
                write_page(out / name, "Predicted cell types", subtitle, above, sections)
    except OSError as error:
        raise UserError(
            f"{out}: cannot write the gallery ({error.strerror}); give a folder that can be written"
        ) from error
    return out / names[0]


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows by type and rising confidence; of too many, each type's least certain in proportion."""
    ordered = frame.sort_values(["type", "confidence", "path"], kind="stable").reset_index(drop=True)
    most = CARDS_PER_PAGE * MAX_PAGES
    if len(ordered) <= most:
        return ordered
    position = ordered.groupby("type").cumcount()
    size = ordered.groupby("type")["type"].transform("size")
    return ordered[position < size * most / len(ordered)].iloc[:most].reset_index(drop=True)


def _page_label(number: int, rows: pd.DataFrame) -> str:
    """'2 lymphocyte to monocyte': the page's number and types."""
    first, last = rows["type"].iloc[[0, -1]]
    return f"{number} {first}" + ("" if first == last else f" to {last}")


def _count_table(frame: pd.DataFrame, cell_types: Sequence[str]) -> Table:
    rows = []
    for cell_type in cell_types:
        confidences = frame.loc[frame["type"] == cell_type, "confidence"]
        middle = _percent(float(confidences.median())) if len(confidences) else "-"
        is_unsure = frame["uncertain"] if "uncertain" in frame else frame["confidence"] < 0.5
        flags = [is_unsure, *([frame[UNFAMILIAR]] if UNFAMILIAR in frame else [])]
        counts = [Cell(str(int(flag[frame["type"] == cell_type].sum()))) for flag in flags]
        rows.append([Cell(cell_type), Cell(str(len(confidences))), Cell(middle), *counts])
    caption = f"Predictions of {len(frame)} images. Confidence is the model's own probability."
    head = ["type", "images", "median confidence", "uncertain" if "uncertain" in frame else "below 50 %"]
    if UNFAMILIAR in frame:
        head.append(_UNFAMILIAR_MARK)
        caption += f" {_UNCERTAINTY_WORDS}"
    return Table(caption, head, rows)


def _sections_by_type(
    rows: pd.DataFrame, cell_types: Sequence[str], middle_square: bool, progress: Any
) -> list[Section]:
    columns = [f"{PROBABILITY}{cell_type}" for cell_type in cell_types]
    sections = []
    for predicted, part in rows.groupby("type", sort=False):
        cards = []
        for row in part.to_dict("records"):
            name, truth = Path(str(row["path"])).name, row.get("cell_type", "")
            picture = thumbnail(on_disk(Path(), str(row["path"])), name, row.get(HEAT), middle_square=middle_square)
            marks, note = _uncertainty(row)
            probabilities, true_type = [row[column] for column in columns], "" if pd.isna(truth) else str(truth)
            cards.append(prediction_card(probabilities, cell_types, true_type, picture, f"{name}{note}", marks))
            progress.update()
        key = f"Bars: {type_numbers(cell_types)}.{f' {HEAT_WORDS}' if HEAT in part else ''}"
        sections.append(Section(str(predicted).capitalize(), f"{len(part)} images on this page.", [Cards(key, cards)]))
    return sections


def _uncertainty(row: Mapping[Hashable, Any]) -> tuple[list[str], str]:
    """The marks of an image's card, and what follows the name of its file."""
    flags = (("uncertain", "uncertain"), (UNFAMILIAR, _UNFAMILIAR_MARK))
    marks = [mark for column, mark in flags if row.get(column)]
    if UNFAMILIARITY not in row:
        return marks, ""
    return marks, f" · set: {row[SET] or 'empty'} · unfamiliarity {row[UNFAMILIARITY]:.1f}"


def _percent(fraction: float) -> str:
    """'71 %'; never '100 %' for what is less than certain."""
    return f"{min(100 * fraction, 99.9):.1f} %" if 0.995 <= fraction < 0.99995 else f"{100 * fraction:.0f} %"


def thumbnail(source: Path | bytes, alt: str, heat: bytes | None = None, *, middle_square: bool = False) -> Markup:
    """An <img> whose data URI holds the picture as a small JPEG; a grey box where it cannot be read.

    heat: as grad_cam.in_picture gives it, laid over it; with middle_square, of the picture's middle square.
    """
    found = small_picture(source, _SIZE)
    if found is None:
        return NO_PICTURE
    data, size = found
    picture = Markup('<img src="{}" alt="{}" loading="lazy">').format(data, alt)
    if heat is None:
        return picture
    overlay = _overlay(heat, size, middle_square)
    return Markup('<div class="look">{}<img class="heat" src="{}" alt="heat"></div>').format(picture, overlay)


def small_picture(source: Path | bytes, side: int) -> tuple[Markup, tuple[int, int]] | None:
    """The picture as a data URI, a JPEG of at most `side` pixels a side, and its size; None where it cannot be read."""
    try:
        if isinstance(source, Path):
            small = decode_rgb(file_of(source).read_bytes(), region_of(source))
        else:
            small = decode_rgb(source)
        small.thumbnail((side, side))
    except (OSError, UnreadableImage):
        return None
    return data_uri(small, "jpeg", quality=82), small.size


def _overlay(heat: bytes, size: tuple[int, int], middle_square: bool) -> Markup:
    """A PNG of the shape of the picture: cold places clear, hot ones green."""
    values = np.frombuffer(heat, np.uint8)
    side = math.isqrt(len(values))
    width, height = (max(1, round(_HEAT_SIZE * pixels / max(size))) for pixels in size)
    covered = (min(width, height),) * 2 if middle_square else (width, height)
    smooth = Image.fromarray(values.reshape(side, side)).resize(covered, Image.Resampling.BICUBIC)
    share = np.asarray(smooth, np.float32) / 255
    pixels = np.full((*share.shape, 4), (*_GREEN, 0), np.uint8)
    pixels[..., 3] = 255 * 0.7 * np.clip((share - 0.2) / 0.7, 0, 1)
    whole = Image.new("RGBA", (width, height))
    whole.paste(Image.fromarray(pixels), ((width - covered[0]) // 2, (height - covered[1]) // 2))
    return data_uri(whole, "png")
