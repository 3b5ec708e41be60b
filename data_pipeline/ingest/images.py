"""Decoding of raw image files; the only place where raw files are decoded."""

import io
import struct
import warnings
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.pixel_range import EIGHT_BITS, to_eight_bits
from data_pipeline.ingest.regions import Region

# Increased when the pixels of a decoded file change: all files are then decoded and all shards written anew.
DECODING = 2
HASH_SIDE = 16  # 16 x 16 bits: 64 bits do not distinguish cells, which all are in the middle of the picture
HASH_BYTES = HASH_SIDE * HASH_SIDE // 8

_MAX_PIXELS = 64_000_000  # larger images are fields of view or slides
_MAX_SIDE = 16_384  # a JPEG takes 65,500 pixels, a WebP 16,383
_MIN_SIDE = 4
# Formats of IMAGE_SUFFIXES. Pillow knows more, some of which start other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_START = b"\x89PNG\r\n\x1a\n"

# Scanners write colour profiles and XMP of several megabytes, which Pillow refuses by default.
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20
PngImagePlugin.MAX_TEXT_MEMORY = 128 * 2**20


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Result of decoding a raw file."""

    width: int | None
    height: int | None
    perceptual_hash: bytes | None  # HASH_BYTES bytes
    problem: str  # why the image cannot be used, '' if it can
    bits: int = EIGHT_BITS  # of the range of the pixel values


def decode_rgb(raw: bytes, region: Region | None = None) -> Image.Image:
    """Decode a file (JPEG, PNG, TIFF, BMP, WebP, GIF) to 8-bit RGB in sRGB, upright, without alpha channel.

    region: the part that is wanted; None for the whole picture. More than 8 bits per channel are scaled by their range
    (`to_eight_bits`). UnreadableImage for anything that is not one whole picture: a truncated file raises and is never
    padded; and for a region that reaches past the picture.
    """
    return _decode(raw, region)[0]


def inspect_image(raw: bytes, region: Region | None = None) -> ImageFacts:
    """Size (upright) and perceptual hash of a raw file or a region of it, or why it cannot be used; never raises."""
    try:
        image, bits = _decode(raw, region)
        return ImageFacts(image.width, image.height, perceptual_hash(image), "", bits)
    except UnreadableImage as error:
        return ImageFacts(None, None, None, str(error))
    except Exception as error:  # of the hash
        return ImageFacts(None, None, None, f"cannot be hashed ({' '.join(str(error).split())})")


def perceptual_hash(image: Image.Image) -> bytes:
    """Perceptual hash (pHash) of HASH_BYTES bytes: similar pictures have a small Hamming distance."""
    return np.packbits(imagehash.phash(image, hash_size=HASH_SIDE).hash.ravel()).tobytes()


def check_size(width: int, height: int) -> None:
    """UnreadableImage for a size that no picture of a single cell has."""
    if width * height > _MAX_PIXELS or max(width, height) > _MAX_SIDE:
        raise UnreadableImage(f"{width}x{height} pixels: no single-cell image")
    if min(width, height) < _MIN_SIDE:
        raise UnreadableImage(f"{width}x{height} pixels: too small to show a cell")


def _decode(raw: bytes, region: Region | None) -> tuple[Image.Image, int]:
    """The picture, and the bits of the range of its values."""
    if not raw:
        raise UnreadableImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata; damaged pixels raise
            if raw.startswith(_TIFF_STARTS):
                from data_pipeline.ingest.tiff import read_tiff  # here: slow to import

                image, bits = read_tiff(raw, check_size)
            else:
                image, bits = _read(raw)
            return _part(_in_srgb(ImageOps.exif_transpose(image)), region), bits
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not an image") from None
    # Decoders raise anything for bad bytes.
    except Exception as error:
        raise UnreadableImage(f"damaged ({' '.join(str(error).split()) or type(error).__name__})") from None


def _part(image: Image.Image, region: Region | None) -> Image.Image:
    if region is None:
        return image
    right, bottom = region.x + region.width, region.y + region.height
    if right > image.width or bottom > image.height:
        raise UnreadableImage(f"the region reaches past the picture of {image.width}x{image.height} pixels")
    check_size(region.width, region.height)
    return image.crop((region.x, region.y, right, bottom))


def _read(raw: bytes) -> tuple[Image.Image, int]:
    try:
        image: Image.Image = Image.open(io.BytesIO(raw), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UnreadableImage("too many pixels: no single-cell image") from None
    check_size(*image.size)
    frames = getattr(image, "n_frames", 1)
    # Cameras append previews to a JPEG (MPO), after the picture. An animation has no one picture.
    if frames > 1 and image.format != "MPO":
        raise UnreadableImage(f"{frames} pictures in one file")
    image.load()
    if raw.startswith(_PNG_START) and raw[24] == 16:
        import imagecodecs  # Pillow keeps only the upper 8 of 16 bits

        pixels, bits = to_eight_bits(imagecodecs.png_decode(raw), _significant_bits(raw))
        deep = Image.fromarray(pixels)
        deep.info = image.info
        return deep, bits
    return image, EIGHT_BITS


def _significant_bits(png: bytes) -> int | None:
    """The largest number of bits in a PNG's chunk sBIT, which comes before the pixels; None without one."""
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
    """Convert to sRGB and drop alpha: compositing would invent colours under the alpha of Munich's images.

    In Adobe RGB and Display P3 the red of Barcelona's nuclei differs from sRGB by 10 and 6 of 255 on average. Files
    without a profile count as sRGB; damaged profiles and those of grey values are ignored.
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
