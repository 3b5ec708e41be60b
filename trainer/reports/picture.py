"""Small pictures in a page's own bytes, under the heat of a classifier's look at them."""

import base64
import io
import math
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.images import decode_rgb

_SIZE = 144  # pixels; about 5 kB as JPEG
_HEAT_SIZE = 72  # smooth, so half as fine; about 3 kB as PNG
_GREEN = (0, 215, 90)  # the one hue that no stain of blood has
NO_PICTURE = Markup('<div class="nothing">picture not available</div>')
HEAT_WORDS = (
    "Green: where the classifier found its answer, strongest at the place that spoke most for it (Grad-CAM); under the "
    "pointer a picture is bare."
)


def thumbnail(source: Path | bytes, alt: str, heat: bytes | None = None, *, middle_square: bool = False) -> Markup:
    """An <img> whose data URI holds the picture as a small JPEG; a grey box where it cannot be read.

    heat: as grad_cam.in_picture gives it, laid over it; with middle_square, of the picture's middle square.
    """
    try:
        small = decode_rgb(source.read_bytes() if isinstance(source, Path) else source)
        small.thumbnail((_SIZE, _SIZE))
    except (OSError, UnreadableImage):
        return NO_PICTURE
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    picture = Markup('<img src="data:image/jpeg;base64,{}" alt="{}" loading="lazy">').format(Markup(data), alt)
    if heat is None:
        return picture
    overlay = _overlay(heat, small.size, middle_square)
    return Markup('<div class="look">{}<img class="heat" src="data:image/png;base64,{}" alt="heat"></div>').format(
        picture, Markup(overlay)
    )


def _overlay(heat: bytes, size: tuple[int, int], middle_square: bool) -> str:
    """A PNG, in base 64, of the shape of the picture: cold places clear, hot ones green."""
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
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
