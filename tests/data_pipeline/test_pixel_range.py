"""If these fail, images are stored nearly black, brightened by chance, or another picture of the file is stored."""

import io
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.images import decode_rgb, inspect_image
from tests.data_pipeline.raw_images import picture

EIGHT = np.asarray(picture(3))


def tiff(values: npt.NDArray[Any], **options: Any) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, values, **options)
    return data.getvalue()


def png(values: npt.NDArray[Any]) -> bytes:
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))


def of_depth(bits: int) -> npt.NDArray[np.uint16]:
    """The picture as a camera of so many bits records it, in 16."""
    return (EIGHT.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)


def pixels(raw: bytes) -> npt.NDArray[np.int16]:
    return np.asarray(decode_rgb(raw)).astype(np.int16)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "file",
    [
        png,
        lambda values: tiff(values, photometric="rgb"),
        lambda values: tiff(values, photometric="rgb", compression="lzw", predictor=True),
        lambda values: tiff(np.moveaxis(values, 2, 0).copy(), photometric="rgb", planarconfig="separate"),
        lambda values: tiff(values, photometric="rgb", bigtiff=True, tile=(16, 16), compression="zlib"),
        lambda values: tiff(np.moveaxis(values, 2, 0).copy(), photometric="minisblack", metadata={"axes": "CYX"}),
    ],
)
def test_values_of_more_than_eight_bits_keep_the_brightness_of_the_picture(bits: int, file: Any) -> None:
    assert np.abs(pixels(file(of_depth(bits))) - EIGHT).max() <= 1
    grey = of_depth(bits)[..., 1]
    read = pixels(png(grey)) if file is png else pixels(tiff(grey))
    assert np.abs(read - EIGHT[..., 1:2]).max() <= 1


def test_images_of_one_camera_are_scaled_alike() -> None:
    """A stretch to each image's own maximum would make the darker exposure as bright as the other."""
    bright, dark = pixels(png(of_depth(12))), pixels(png(of_depth(12) // 2))
    assert np.abs(dark - bright / 2).max() <= 1


def test_the_range_that_a_file_names_goes_before_its_content() -> None:
    dark = of_depth(12) // 8  # its content would pass for ten bits
    named = tiff(dark, photometric="rgb", ome=True, metadata={"axes": "YXS", "SignificantBits": 12})
    assert np.abs(pixels(named) - EIGHT / 8).max() <= 1
    packed = tiff(dark[..., 0].copy(), bitspersample=12)
    assert np.abs(pixels(packed) - EIGHT[..., :1] / 8).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_floating_point_values_in_a_usual_range_are_read(top: float, kind: str) -> None:
    assert np.abs(pixels(tiff((EIGHT / 255 * top).astype(kind), photometric="rgb")) - EIGHT).max() <= 1


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (tiff(EIGHT.astype(np.int16)[..., 0] - 99), "negative"),
        (tiff(EIGHT.view(np.int8), photometric="rgb"), "negative"),
        (tiff(EIGHT.astype(np.uint32)[..., 0] * 70_000), "more than 16 bits"),
        (tiff((EIGHT // 8).astype(np.uint16), photometric="rgb"), "range is unknown"),
        (png(np.zeros((9, 9), np.uint16)), "range is unknown"),
        (tiff(of_depth(12)[..., 0].copy(), photometric="miniswhite"), "least of them white"),
        (tiff((EIGHT / 17).astype(np.float32), photometric="rgb"), "floating-point"),
        (tiff(np.full((9, 9), np.nan, np.float32)), "floating-point"),
        (tiff(np.dstack([of_depth(16), of_depth(16)[..., :1]]), photometric="separated"), "colour space SEPARATED"),
        (tiff(of_depth(12), photometric="rgb")[:-500], "part of its pixels is missing"),
        (tiff(np.stack([EIGHT, EIGHT[::-1]]), photometric="rgb"), "2 pictures in one file"),
        (tiff(EIGHT.transpose(2, 0, 1).copy(), photometric="minisblack", metadata={"axes": "ZYX"}), "3 pictures"),
        (tiff(EIGHT.transpose(2, 0, 1).copy(), imagej=True, metadata={"axes": "ZYX"}), "3 pictures"),
    ],
)
def test_what_may_mean_several_things_is_refused_with_the_reason(raw: bytes, says: str) -> None:
    assert says in inspect_image(raw).problem


@pytest.mark.parametrize("bits", [8, 12])
def test_a_tiff_is_read_where_its_picture_stands(bits: int) -> None:
    """Beside thumbnails, before and after it, and above the levels of a pyramid."""
    values = of_depth(bits).astype(np.uint8 if bits == 8 else np.uint16)
    small = values[::4, ::4].copy()
    before, after, pyramid = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with tifffile.TiffWriter(before) as writer:
        writer.write(small, photometric="rgb", subfiletype=1)
        writer.write(values, photometric="rgb")
    with tifffile.TiffWriter(after) as writer:
        writer.write(values, photometric="rgb")
        writer.write(small, photometric="rgb", subfiletype=1)
    with tifffile.TiffWriter(pyramid) as writer:
        writer.write(values, photometric="rgb", subifds=1)
        writer.write(values[::2, ::2].copy(), photometric="rgb", subfiletype=1)
    for data in (before, after, pyramid):
        assert np.abs(pixels(data.getvalue()) - EIGHT).max() <= 1


def test_channels_as_pages_are_red_green_and_blue_by_their_names() -> None:
    def channels(*names: str) -> bytes:
        metadata = {"axes": "CYX", "Channel": {"Name": list(names)}}
        order = {"Red": 0, "Green": 1, "Blue": 2}
        planes = np.stack([EIGHT[..., order.get(name, 0)] for name in names])
        return tiff(planes, photometric="minisblack", ome=True, metadata=metadata)

    np.testing.assert_array_equal(pixels(channels("Blue", "Green", "Red")), EIGHT)
    assert "dapi" in inspect_image(channels("DAPI", "FITC", "Cy3")).problem


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 98}, "subsampling": (1, 1)},
        {"photometric": "rgb", "compression": "zstd"},
        {"photometric": "rgb", "planarconfig": "separate"},
        {"photometric": "rgb", "bigtiff": True, "tile": (16, 16), "byteorder": ">"},
        {"photometric": "rgb", "extrasamples": ["unassalpha"]},
    ],
)
def test_every_way_of_storing_eight_bits_in_a_tiff_gives_the_picture(options: dict[str, Any]) -> None:
    values = EIGHT
    if options.get("planarconfig") == "separate":
        values = np.moveaxis(EIGHT, 2, 0).copy()
    if "extrasamples" in options:
        values = np.dstack([EIGHT, np.full(EIGHT.shape[:2], 9, np.uint8)])
    assert np.abs(pixels(tiff(values, **options)) - EIGHT).mean() < 3


def test_white_that_is_least_two_values_and_lab_are_read() -> None:
    np.testing.assert_array_equal(pixels(tiff(255 - EIGHT[..., 0], photometric="miniswhite"))[..., 0], EIGHT[..., 0])
    assert set(np.unique(pixels(tiff(EIGHT[..., 0] > 99)))) == {0, 255}
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    data = io.BytesIO()
    converted = ImageCms.applyTransform(Image.fromarray(EIGHT), lab)
    assert converted is not None
    converted.save(data, "TIFF")
    assert np.abs(pixels(data.getvalue()) - EIGHT).mean() < 3


def test_sound_files_with_megabytes_of_profile_and_text_are_read() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("XML:com.adobe.xmp", "x" * 1_200_000, zip=True)
    profile = np.random.default_rng(1).integers(0, 9, 1_200_000, dtype=np.uint8).tobytes()
    for options in ({"pnginfo": text}, {"icc_profile": profile}):
        data = io.BytesIO()
        Image.fromarray(EIGHT).save(data, "PNG", **options)
        np.testing.assert_array_equal(pixels(data.getvalue()), EIGHT)
    bomb = io.BytesIO()
    Image.new("1", (16_000, 12_000)).save(bomb, "PNG")
    assert "no single-cell image" in inspect_image(bomb.getvalue()).problem


@given(
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8"]),
    channels=st.sampled_from([0, 1, 2, 3, 4, 5]),
    top=st.one_of(st.integers(0, 2**17), st.sampled_from([1, 255, 1023, 4095, 16383, 65535])),
    photometric=st.sampled_from(["rgb", "minisblack", "miniswhite", "separated", "cielab"]),
    planar=st.booleans(),
    cut=st.integers(0, 400),
    seed=st.integers(0, 99),
)
def test_no_kind_of_tiff_raises_anything_but_a_reason(
    side: tuple[int, int], kind: str, channels: int, top: int, photometric: str, planar: bool, cut: int, seed: int
) -> None:
    shape = (*side, channels) if channels else side
    random = np.random.default_rng(seed).random(shape if not planar else (*shape[2:], *shape[:2]))
    values = (random * top).astype(np.int64).astype(kind) if kind[0] != "f" else (random * top).astype(kind)
    try:
        raw = tiff(values, photometric=photometric, planarconfig="separate" if planar and channels > 1 else None)
    except Exception:  # what tifffile does not write
        return
    _whole_or_reason(raw[: len(raw) - cut])


@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"]),
    kind=st.sampled_from(["PNG", "TIFF", "JPEG", "WEBP", "BMP", "GIF"]),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    flip=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=4),
    seed=st.integers(0, 99),
)
def test_no_mode_and_no_damage_raises_anything_but_a_reason(
    mode: str, kind: str, size: tuple[int, int], flip: list[tuple[int, int]], seed: int
) -> None:
    data = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    try:
        Image.fromarray(noise).convert(mode).save(data, kind)
    except (OSError, ValueError, KeyError):  # what Pillow does not convert or write
        return
    raw = bytearray(data.getvalue())
    for place, value in flip:
        raw[place % len(raw)] = value
    _whole_or_reason(bytes(raw))


@given(bits=st.sampled_from([8, 10, 12, 14, 16]), exposure=st.floats(0.3, 1.0), grey=st.booleans())
def test_whatever_the_depth_and_exposure_the_brightness_is_kept(bits: int, exposure: float, grey: bool) -> None:
    whole = of_depth(bits) * exposure
    whole[0, 0] = (2**bits - 1) * exposure  # a background
    values = whole.astype(np.uint16)
    read = pixels(png(values[..., 0] if grey else values)) / 255
    expected = values[..., :1] / (2**bits - 1) if grey else values / (2**bits - 1)
    assert np.abs(read - expected).max() < 0.005


def _whole_or_reason(raw: bytes) -> None:
    facts = inspect_image(raw)
    if facts.problem:
        assert "\n" not in facts.problem
        with pytest.raises(UnreadableImage):
            decode_rgb(raw)
    else:
        assert decode_rgb(raw).size == (facts.width, facts.height)
        assert facts.perceptual_hash is not None
