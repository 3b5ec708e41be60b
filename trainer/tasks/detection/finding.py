"""Finding cells in a folder of fields."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UnreadableImage, UserError
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.images import decode_rgb
from data_pipeline.progress_bar import track
from data_pipeline.sources.annotations import AnnotatedField, Box
from data_pipeline.sources.declaration import is_hidden, list_images


class Finder(Protocol):
    """What finds cells: NucleusFinder, TrainedDetector."""

    def find(self, pixels: npt.NDArray[np.uint8]) -> list[Box]:
        """Boxes of cells, named by their kinds, in a field, uint8 RGB [H, W, 3]."""


def find_in_fields(
    finder: Finder, root: Path, microns_per_pixel: float | None = None
) -> tuple[list[AnnotatedField], dict[str, str]]:
    """Each field of a folder with the boxes that are found, sorted by path; and why others cannot be read, by path.

    microns_per_pixel: of all fields. UserError where none can be read.
    """
    paths = [path for path in list_images(root)[0] if not is_hidden(path)]
    fields, unreadable = [], {}
    for path in track(iter(paths), len(paths), "finding cells", "field"):
        try:
            pixels = np.asarray(decode_rgb(on_disk(root, path).read_bytes()))
        except OSError as error:
            unreadable[path] = f"cannot be read ({error.strerror})"
        except UnreadableImage as error:
            unreadable[path] = str(error)
        else:
            height, width = pixels.shape[:2]
            fields.append(AnnotatedField(path, width, height, tuple(finder.find(pixels)), microns_per_pixel))
    if not fields:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(unreadable.items())[:3])
        raise UserError(f"{root}: none of its {len(paths)} fields can be read ({reasons})")
    return fields, unreadable
