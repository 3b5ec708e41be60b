"""Raw image files: whether they can be read, and what they show."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# A perceptual hash of 16 x 16 bits: 64 bits cannot tell apart cells that all sit in the middle of a smear.
HASH_SIDE = 16
HASH_BYTES = HASH_SIDE * HASH_SIDE // 8

# Above this an image is a field of view or a slide, not one cell.
_MAX_PIXELS = 64_000_000


class UnreadableImage(ValueError):
    """The bytes are no image that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What looking inside a file tells. `problem` is '' for an image that can be used."""

    width: int | None
    height: int | None
    perceptual_hash: bytes | None  # HASH_BYTES bytes
    problem: str


def decode_rgb(raw: bytes) -> Image.Image:
    """Decode a file of any kind that Pillow knows to 8-bit RGB, turned upright, an alpha channel dropped.

    UnreadableImage for anything that is not one whole picture of 8 bits per channel: a cut file raises,
    it is never padded with grey.
    """
    if not raw:
        raise UnreadableImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; what is wrong with pixels raises
            image = Image.open(io.BytesIO(raw))
            if image.width * image.height > _MAX_PIXELS:
                raise UnreadableImage(f"{image.width}x{image.height} pixels: no single-cell image")
            frames = getattr(image, "n_frames", 1)
            # Cameras append previews to a JPEG (MPO); its first picture is the picture.
            if frames > 1 and image.format != "MPO":
                raise UnreadableImage(f"{frames} pictures in one file")
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                raise UnreadableImage(f"pixels of mode {image.mode}, not 8 bits per channel")
            image.load()
            # Alpha is dropped by hand: compositing would invent colours under Munich's RGBA.
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not an image") from None
    # Pillow's decoders answer bad bytes with whatever they trip over.
    except Exception as error:
        raise UnreadableImage(f"damaged ({' '.join(str(error).split()) or type(error).__name__})") from None


def inspect_image(raw: bytes) -> ImageFacts:
    """Size (upright) and perceptual hash of a raw file, or why it cannot be used; bad bytes never raise."""
    try:
        image = decode_rgb(raw)
    except UnreadableImage as error:
        return ImageFacts(None, None, None, str(error))
    return ImageFacts(image.width, image.height, perceptual_hash(image), "")


def perceptual_hash(image: Image.Image) -> bytes:
    """HASH_BYTES bytes that differ in few bits between pictures that look alike."""
    return np.packbits(imagehash.phash(image, hash_size=HASH_SIDE).hash.ravel()).tobytes()
