"""Raw image files: whether they can be read, and what they show. Whoever reads a raw file decodes it here."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.pixel_range import EIGHT_BITS, to_eight_bits

# Raised by one when raw files are decoded otherwise: all are looked at anew, and every shard is written anew.
DECODING = 2
# A perceptual hash of 16 x 16 bits: 64 bits cannot tell apart cells that all sit in the middle of a smear.
HASH_SIDE = 16
HASH_BYTES = HASH_SIDE * HASH_SIDE // 8

# Above this an image is a field of view or a slide, not one cell; below it shows nothing.
_MAX_PIXELS = 64_000_000
_MAX_SIDE = 16_384  # a JPEG takes 65,500 pixels, a WebP 16,383
_MIN_SIDE = 4
# What the suffixes of image files promise. Pillow knows more kinds, some of which start other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_START = b"\x89PNG\r\n\x1a\n"

# Scanners and photo programs write colour profiles and XMP of several megabytes; Pillow takes one for an attack.
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20
PngImagePlugin.MAX_TEXT_MEMORY = 128 * 2**20


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What looking inside a file tells. `problem` is '' for an image that can be used."""

    width: int | None
    height: int | None
    perceptual_hash: bytes | None  # HASH_BYTES bytes
    problem: str
    bits: int = EIGHT_BITS  # of the range that the pixel values were read in


def decode_rgb(raw: bytes) -> Image.Image:
    """Decode a file (JPEG, PNG, TIFF, BMP, WebP, GIF) to 8-bit RGB, turned upright, an alpha channel dropped.

    More than 8 bits per channel are scaled by their range (`to_eight_bits`); colours of a profile are brought to
    sRGB. UnreadableImage for anything that is not one whole picture: a cut file raises, it is never padded with grey.
    """
    return _decode(raw)[0]


def inspect_image(raw: bytes) -> ImageFacts:
    """Size (upright) and perceptual hash of a raw file, or why it cannot be used; bad bytes never raise."""
    try:
        image, bits = _decode(raw)
        return ImageFacts(image.width, image.height, perceptual_hash(image), "", bits)
    except UnreadableImage as error:
        return ImageFacts(None, None, None, str(error))
    except Exception as error:  # of the hash: one odd image costs one image
        return ImageFacts(None, None, None, f"cannot be hashed ({' '.join(str(error).split())})")


def perceptual_hash(image: Image.Image) -> bytes:
    """HASH_BYTES bytes that differ in few bits between pictures that look alike."""
    return np.packbits(imagehash.phash(image, hash_size=HASH_SIDE).hash.ravel()).tobytes()


def check_size(width: int, height: int) -> None:
    """UnreadableImage for a size that no picture of one cell has."""
    if width * height > _MAX_PIXELS or max(width, height) > _MAX_SIDE:
        raise UnreadableImage(f"{width}x{height} pixels: no single-cell image")
    if min(width, height) < _MIN_SIDE:
        raise UnreadableImage(f"{width}x{height} pixels: too small to show a cell")


def _decode(raw: bytes) -> tuple[Image.Image, int]:
    """The picture, and how many bits the range of its values has."""
    if not raw:
        raise UnreadableImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; what is wrong with pixels raises
            if raw.startswith(_TIFF_STARTS):
                from data_pipeline.ingest.tiff import read_tiff  # only where there is a TIFF: it takes a while

                image, bits = read_tiff(raw, check_size)
            else:
                image, bits = _read(raw)
            return _in_srgb(ImageOps.exif_transpose(image)), bits
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not an image") from None
    # Decoders answer bad bytes with whatever they trip over.
    except Exception as error:
        raise UnreadableImage(f"damaged ({' '.join(str(error).split()) or type(error).__name__})") from None


def _read(raw: bytes) -> tuple[Image.Image, int]:
    try:
        image: Image.Image = Image.open(io.BytesIO(raw), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UnreadableImage("too many pixels: no single-cell image") from None
    check_size(*image.size)
    frames = getattr(image, "n_frames", 1)
    # Cameras append previews to a JPEG (MPO); its first picture is the picture. Of an animation none is.
    if frames > 1 and image.format != "MPO":
        raise UnreadableImage(f"{frames} pictures in one file")
    image.load()
    if raw.startswith(_PNG_START) and raw[24] == 16:
        import imagecodecs  # Pillow keeps the upper 8 of the 16 bits alone

        pixels, bits = to_eight_bits(imagecodecs.png_decode(raw), _significant_bits(raw))
        deep = Image.fromarray(pixels)
        deep.info = image.info
        return deep, bits
    return image, EIGHT_BITS


def _significant_bits(png: bytes) -> int | None:
    """The most bits that a PNG's chunk sBIT names, which comes before the pixels, if it has one."""
    place = len(_PNG_START)
    while place + 8 <= len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        if kind == b"sBIT":
            return max(png[place + 8 : place + 8 + length], default=None)
        if kind == b"IDAT":
            return None
        place += 12 + length
    return None


def _in_srgb(image: Image.Image) -> Image.Image:
    """Without alpha, which is dropped by hand: compositing would invent colours under Munich's RGBA.

    The same colour has other values in Adobe RGB or Display P3 than in sRGB, which files without a profile are in: the
    red of Barcelona's nuclei by 10 and 6 of 255 on average. A profile of grey values, or a damaged one, is left aside.
    """
    profile = image.info.get("icc_profile")
    image = image if image.mode in ("CMYK", "LAB") else image.convert("RGB")
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB")
        return ImageCms.applyTransform(image, transform) or image
    if profile:
        try:
            opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            meant = opened.profile.xcolor_space.strip() == image.mode
            if meant and "srgb" not in ImageCms.getProfileDescription(opened).lower():
                transform = ImageCms.buildTransform(opened, _SRGB, image.mode, "RGB")
                return ImageCms.applyTransform(image, transform) or image
        except (OSError, ImageCms.PyCMSError):
            pass
    return image.convert("RGB")


_SRGB = ImageCms.createProfile("sRGB")
