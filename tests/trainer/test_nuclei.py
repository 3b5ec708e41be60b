"""If these fail, white cells of a field are missed, counted twice, or cut in pieces before anything is trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from data_pipeline.sources.annotations import Box, read_annotations
from trainer.tasks.detection.nuclei import NucleusFinder

PLASMA, RED_CELL, NUCLEUS, CYTOPLASM = (225, 225, 215), (205, 150, 145), (90, 60, 170), (200, 170, 215)


Places = Sequence[tuple[int, int]]


def draw_field(granulocytes: Places = (), lymphocytes: Places = (), platelets: Places = ()) -> npt.NDArray[np.uint8]:
    """A field of 640 x 480 pixels with red cells of radius 40; the nucleus of a granulocyte has two lobes apart."""
    field = Image.new("RGB", (640, 480), PLASMA)
    draw = ImageDraw.Draw(field)

    def circle(x: int, y: int, radius: int, colour: tuple[int, int, int]) -> None:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    for x, y in ((60, 60), (170, 60), (60, 420), (170, 420), (280, 420), (600, 60)):
        circle(x, y, 40, RED_CELL)
    for x, y in granulocytes:
        circle(x, y, 60, CYTOPLASM)
        circle(x - 26, y, 28, NUCLEUS)
        circle(x + 28, y, 28, NUCLEUS)
    for x, y in lymphocytes:
        circle(x, y, 48, NUCLEUS)
    for x, y in platelets:
        circle(x, y, 10, NUCLEUS)
    return np.asarray(field)


def overlap(box: Box, x: int, y: int, radius: int) -> float:
    """Intersection over union of the box and the square round a circle."""
    width = min(box.right, x + radius) - max(box.left, x - radius)
    height = min(box.bottom, y + radius) - max(box.top, y - radius)
    both = max(width, 0) * max(height, 0)
    return both / ((box.right - box.left) * (box.bottom - box.top) + 4 * radius**2 - both)


def test_lobes_are_one_cell_and_platelets_are_none() -> None:
    cells = [(200, 220), (480, 300)]
    found = NucleusFinder().find(draw_field(cells, platelets=[(320, 100), (400, 60)]))
    assert len(found) == 2
    assert all(max(overlap(box, *cell, 60) for box in found) > 0.5 for cell in cells)


def test_cells_that_touch_are_two() -> None:
    assert len(NucleusFinder().find(draw_field(lymphocytes=[(250, 220), (344, 220)]))) == 2


def test_boxes_are_those_of_the_field_at_any_size() -> None:
    """The scale is taken from the red cells: a camera with twice the pixels finds the same cells."""
    field = draw_field([(480, 300)])
    (small,), (large,) = (NucleusFinder().find(pixels) for pixels in (field, field.repeat(2, 0).repeat(2, 1)))
    assert np.allclose([2 * small.left, 2 * small.bottom], [large.left, large.bottom], atol=12)


@pytest.mark.parametrize("colour", [PLASMA, (0, 0, 0)], ids=["empty", "black"])
def test_a_field_without_a_nucleus_has_no_white_cell(colour: tuple[int, int, int]) -> None:
    assert NucleusFinder().find(np.full((480, 640, 3), colour, np.uint8)) == []
    assert NucleusFinder().find(draw_field()) == []


def test_real_white_cells_are_found(real_images: Path) -> None:
    """Every tenth field of BCCD: nine in ten white cells overlap by half, with as few boxes too many."""
    fields = read_annotations(real_images / "BCCD", "voc")[0][::10]
    right = boxes = cells = 0
    for field in fields:
        found = NucleusFinder().find(np.asarray(Image.open(real_images / "BCCD" / field.path)))
        true = [box for box in field.boxes if box.name == "WBC"]
        boxes, cells = boxes + len(found), cells + len(true)
        right += sum(any(_iou(box, cell) >= 0.5 for box in found) for cell in true)
    assert right / cells >= 0.85
    assert right / boxes >= 0.85


def _iou(first: Box, second: Box) -> float:
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    both = max(width, 0) * max(height, 0)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (first, second)]
    return both / (sum(areas) - both)
