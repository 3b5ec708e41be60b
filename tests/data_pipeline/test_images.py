"""If these fail, a broken file trains the network as half a cell, or a good one is thrown away."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.images import HASH_BYTES, decode_rgb, inspect_image
from tests.data_pipeline.raw_images import encoded, picture


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "the file is empty"),
        (b"this is a text file named .jpg\n", "not an image"),
        (encoded(0)[:-200], "damaged"),
        (encoded(0)[:400], "damaged"),
        (encoded(0, "PNG")[:-300], "damaged"),
        (encoded(0, "TIFF")[:-300], "damaged"),
        (saved(Image.fromarray(np.zeros((9, 9), np.uint16)), "PNG"), "range is unknown"),
        (saved(picture(0), "GIF", save_all=True, append_images=[picture(1)]), "2 pictures in one file"),
        (saved(picture(0), "TIFF", save_all=True, append_images=[picture(1)]), "2 pictures in one file"),
        (saved(picture(0), "PNG", save_all=True, append_images=[picture(1)]), "2 pictures in one file"),
        (saved(picture(0), "WEBP", save_all=True, append_images=[picture(1)]), "2 pictures in one file"),
        (saved(picture(0), "PPM"), "not an image"),
        (saved(Image.new("1", (9000, 9000)), "PNG"), "9000x9000 pixels"),
        (saved(Image.new("L", (66_000, 8)), "PNG"), "66000x8 pixels"),
        (saved(Image.new("L", (1, 1)), "PNG"), "too small"),
    ],
)
def test_a_file_that_is_no_whole_picture_says_why_and_is_never_padded(raw: bytes, says: str) -> None:
    facts = inspect_image(raw)
    assert says in facts.problem
    assert "\n" not in facts.problem
    assert (facts.width, facts.height, facts.perceptual_hash) == (None, None, None)
    with pytest.raises(UnreadableImage):
        decode_rgb(raw)


def test_every_colour_mode_ends_as_rgb() -> None:
    image = picture(0)
    rgba = image.copy()
    rgba.putalpha(Image.new("L", image.size, 3))
    decoded = np.asarray(decode_rgb(saved(rgba, "TIFF")))
    np.testing.assert_array_equal(decoded, np.asarray(image), err_msg="alpha must be dropped, not blended in")
    for mode in ("CMYK", "L"):
        converted = decode_rgb(saved(image.convert(mode), "JPEG", quality=95))
        expected = np.asarray(image.convert(mode).convert("RGB"), float)
        assert converted.mode == "RGB"
        assert np.abs(np.asarray(converted, float) - expected).mean() < 4
    assert decode_rgb(saved(image.convert("P"), "PNG")).mode == "RGB"


def test_colours_of_a_profile_come_to_srgb_and_those_of_srgb_stay() -> None:
    """The same picture must not change its stain with the program that saved it."""
    image = picture(0)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(decode_rgb(saved(image, "PNG", icc_profile=srgb)), np.asarray(image))
    # Red and blue change places: the least profile whose right reading is known.
    tags = {srgb[at : at + 4]: at for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132]), 12)}
    swapped = bytearray(srgb)
    for one, other in ((b"rXYZ", b"bXYZ"), (b"bXYZ", b"rXYZ")):
        swapped[tags[one] + 4 : tags[one] + 12] = srgb[tags[other] + 4 : tags[other] + 12]
    name = srgb.find("sRGB".encode("utf-16-be"))
    swapped[name : name + 8] = "swap".encode("utf-16-be")
    decoded = np.asarray(decode_rgb(saved(image, "PNG", icc_profile=bytes(swapped))), int)
    assert np.abs(decoded - np.asarray(image)[..., ::-1]).max() <= 3


def test_a_picture_taken_sideways_is_turned_upright() -> None:
    image = picture(0).resize((40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = inspect_image(saved(image, "JPEG", exif=exif))
    assert (facts.width, facts.height) == (20, 40)


def test_the_perceptual_hash_survives_saving_again_and_tells_pictures_apart() -> None:
    def distance(one: bytes, other: bytes) -> int:
        first, second = inspect_image(one).perceptual_hash, inspect_image(other).perceptual_hash
        assert first is not None
        assert second is not None
        assert len(first) == HASH_BYTES
        return (int.from_bytes(first) ^ int.from_bytes(second)).bit_count()

    image = picture(3, side=200)
    assert distance(saved(image, "PNG"), saved(image.resize((150, 150)), "JPEG", quality=60)) <= 10
    assert distance(saved(image, "PNG"), saved(picture(4, side=200), "PNG")) > 60


def test_cells_of_the_public_sets_are_far_apart(real_images: Path) -> None:
    """If different cells came near, real images would be excluded as duplicates."""
    paths = sorted((real_images / "PBC_dataset_normal_DIB" / "lymphocyte").iterdir())[:60]
    hashes = [inspect_image(path.read_bytes()).perceptual_hash for path in paths]
    rows = np.array([np.frombuffer(value or b"", np.uint8) for value in hashes])
    distances = np.bitwise_count(rows[:, None] ^ rows[None]).sum(axis=-1, dtype=int)
    assert distances[~np.eye(len(rows), dtype=bool)].min() > 48
