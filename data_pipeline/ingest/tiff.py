"""TIFF files: the page that is the picture, and its pixels."""

import io
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tifffile import TiffFile, TiffPage, TiffPageSeries

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.pixel_range import EIGHT_BITS, to_eight_bits

_ORIENTATION, _MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 274, 0, 1, 2
_REDUCED, _MASK = 1, 4  # bits of the tag NewSubfileType
_OLD_REDUCED = 2  # a value of its predecessor SubfileType
_PREMULTIPLIED = 1  # a value of the tag ExtraSamples
_SIGNIFICANT_BITS = re.compile(r'(?:SignificantBits="|"BitDepth": ?)(\d+)')  # OME-XML, Micro-Manager
_CHANNEL_NAME = re.compile(r'<Channel\b[^>]*\bName="([^"]*)"')

# Its messages about metadata would break the progress bar; damaged pixels raise.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read_tiff(raw: bytes, check_size: Callable[[int, int], None]) -> tuple[Image.Image, int]:
    """The one picture of a TIFF, not yet upright, and the bits of the range of its values.

    Ignores pages that are reduced copies (thumbnails, pyramids) or masks; three channels as pages are red, green, blue.
    UnreadableImage for several pictures, a stack, or values of unknown range.
    """
    with TiffFile(io.BytesIO(raw)) as tiff:
        pictures = [series for series in tiff.series if not _is_copy(series.keyframe)]
        if len(pictures) != 1:
            raise UnreadableImage(f"{len(pictures)} pictures in one file")
        picture = pictures[0].levels[0]
        page = picture.keyframe
        check_size(page.imagewidth, page.imagelength)
        if picture.size == page.size and page.bitspersample <= EIGHT_BITS and page.dtype in (np.uint8, np.bool_):
            with suppress(UnidentifiedImageError):  # only tifffile knows some kinds
                return _by_pillow(raw, page.index), EIGHT_BITS
        pixels, bits = to_eight_bits(_values(picture, len(raw)), _declared_bits(tiff, page))
        image = Image.fromarray(pixels)
        if page.iccprofile is not None:
            image.info["icc_profile"] = page.iccprofile
        image.getexif()[_ORIENTATION] = page.tags.valueof(_ORIENTATION, 1)
        return image, bits


def _is_copy(page: TiffPage) -> bool:
    return bool(page.subfiletype & (_REDUCED | _MASK)) or page.tags.valueof("SubfileType") == _OLD_REDUCED


def _by_pillow(raw: bytes, index: Any) -> Image.Image:
    """An 8-bit page: Pillow converts every colour space."""
    image: Image.Image = Image.open(io.BytesIO(raw), formats=["TIFF"])
    image.seek(index if isinstance(index, int) else index[0])
    image.load()
    return image


def _values(picture: TiffPageSeries, size: int) -> npt.NDArray[Any]:
    """Pixel values [H, W] or [H, W, C]; bright is high."""
    page = picture.keyframe
    axes = picture.axes
    if axes not in ("YX", "YXS", "SYX", "CYX") or (axes == "CYX" and picture.shape[0] != 3):
        size_of = ", ".join(f"{axis} {length}" for axis, length in zip(axes, picture.shape, strict=True))
        raise UnreadableImage(f"{picture.size // page.size} pictures in one file ({size_of})")
    if page.photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB):
        raise UnreadableImage(f"{page.bitspersample} bits per channel in the colour space {page.photometric.name}")
    if _PREMULTIPLIED in (page.extrasamples or ()):
        raise UnreadableImage(f"{page.bitspersample} bits per channel, multiplied by their opacity")
    for part in picture.pages:
        # tifffile fills missing parts with zeros.
        if part is None or any(
            count == 0 or offset + count > size
            for offset, count in zip(part.dataoffsets, part.databytecounts, strict=True)
        ):
            raise UnreadableImage("damaged (a part of its pixels is missing)")
    values: npt.NDArray[Any] = picture.asarray()
    if axes == "CYX":
        values = values[_red_green_blue(page)]
    if axes in ("CYX", "SYX"):
        values = np.moveaxis(values, 0, -1)
    if page.photometric == _MIN_IS_WHITE:
        white = 2**page.bitspersample - 1
        if values.dtype.kind != "u" or 4 * int(values.max()) < white:
            raise UnreadableImage(f"pixel values up to {values.max()}, the least of them white: their range is unknown")
        values = white - values
    return values


def _red_green_blue(page: TiffPage) -> list[int]:
    """Channel numbers of the three colours, by the channels' names if they have any."""
    names = [name.strip().lower() for name in _CHANNEL_NAME.findall(page.description or "")][:3]
    starts = [name[:1] for name in names]
    if sorted(starts) == ["b", "g", "r"]:
        return [starts.index(colour) for colour in "rgb"]
    if any(re.search(r"[a-z]{2}", re.sub(r"channel|ch", "", name)) for name in names):
        raise UnreadableImage(f"channels {', '.join(names)}: not red, green and blue")
    return [0, 1, 2]


def _declared_bits(tiff: TiffFile, page: TiffPage) -> int | None:
    """The significant bits that the file states; None if only the size of the container is known."""
    if page.bitspersample not in (8, 16, 32, 64):
        return int(page.bitspersample)
    metadata = f"{page.description or ''} {page.tags.valueof(51123, '')}"  # Micro-Manager's own tag
    bits = [int(found) for found in _SIGNIFICANT_BITS.findall(metadata)]
    return max(bits, default=None)
