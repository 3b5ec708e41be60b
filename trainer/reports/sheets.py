"""Sheets of images side by side, as PNG: what a person looks at while a generator learns (figures 41-46)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.disk import replacing

_MARGIN = 4
_HEADER = 18
_LABEL_WIDTH = 130
_SMALLEST = 96  # pixels; smaller images are shown enlarged, and titles have room


def draw_sheet(path: Path, titles: Sequence[str], columns: Sequence[torch.Tensor], labels: Sequence[str]) -> None:
    """Write a sheet of one row per image and one column per title; the file appears whole.

    columns: float [n, 3, H, W] in [-1, 1] each, all of one size, enlarged by a whole factor where that is small;
    labels: of the n rows.
    """
    factor = max(1, -(-_SMALLEST // columns[0].shape[-1]))
    pictures = [_to_bytes(column).repeat(factor, axis=1).repeat(factor, axis=2) for column in columns]
    height, width = pictures[0].shape[1:3]
    step_x, step_y = width + _MARGIN, height + _MARGIN
    sheet = Image.new("RGB", (_LABEL_WIDTH + step_x * len(columns), _HEADER + step_y * len(labels)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, title in enumerate(titles):
        draw.text((_LABEL_WIDTH + number * step_x, 3), title, "black", font)
    for row, label in enumerate(labels):
        top = _HEADER + row * step_y
        draw.text((3, top + height // 2 - 6), label, "black", font)
        for number, column in enumerate(pictures):
            sheet.paste(Image.fromarray(column[row]), (_LABEL_WIDTH + number * step_x, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary)


def _to_bytes(images: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
