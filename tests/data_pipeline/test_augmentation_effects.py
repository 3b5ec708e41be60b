"""If these fail, an augmentation changes images in another way than its settings say, or draws by more than its key."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from data_pipeline.stream.augment import UNCHANGED, AugmentConfig, draw_parameters
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.pipeline import GraphConfig, GraphInputs, build_graph

SIZE, PLASMA, RED_CELL, NUCLEUS = 48, (250, 232, 205), (215, 170, 160), (95, 50, 140)
Images = npt.NDArray[np.float32]


def smear() -> Image.Image:
    """A nucleated cell in the middle, red cells in the corners."""
    image = Image.new("RGB", (2 * SIZE, 2 * SIZE), PLASMA)
    draw = ImageDraw.Draw(image)
    for x, y in ((0, 0), (70, 0), (0, 70), (70, 70)):
        draw.ellipse((x, y, x + 25, y + 25), RED_CELL)
    draw.ellipse((34, 34, 62, 62), NUCLEUS)
    return image


def shown(positions: npt.ArrayLike = range(8), **settings: Any) -> Images:
    """The smear as the stream shows it at these positions: intensities [n, SIZE, SIZE, 3]."""
    operations = replace(UNCHANGED, **settings).operations
    positions = np.asarray(positions)
    data = io.BytesIO()
    smear().save(data, "PNG")
    encoded = [np.frombuffer(data.getvalue(), np.uint8)] * len(positions)
    inputs = GraphInputs(encoded, draw_parameters(operations, 3, positions, SIZE))
    config = GraphConfig(StreamConfig(image_size=SIZE, threads=1, prefetch=1), len(positions), operations)
    images = build_graph(config, lambda: inputs, None).run()[0].as_array()
    return np.asarray((images.transpose(0, 2, 3, 1) + 1) * 127.5)


def roughness(images: Images) -> npt.NDArray[np.float32]:
    """Mean squared difference of neighbours, of each image."""
    return np.asarray((np.diff(images, axis=1) ** 2).mean(axis=(1, 2, 3)))


@pytest.fixture(scope="module")
def clean() -> Images:
    return shown([0])[0]


SETTINGS: list[dict[str, Any]] = [
    {"blur": 0.05, "blur_probability": 0.5},
    {"noise": 0.1, "noise_probability": 0.5},
    {"jpeg_quality": 10, "jpeg_probability": 0.5},
    {"exposure": 0.2, "contrast": 0.2, "midtones": 0.2, "white_balance": 0.1, "saturation": 0.3, "hue": 10.0},
    {"cutout": 0.5, "cutout_probability": 0.5},
    {"background": 1.0, "background_probability": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_an_image_is_the_same_whoever_shows_it(settings: dict[str, Any]) -> None:
    """In other company, in another order, and beside an operation before it that gives floats."""
    together = shown(range(8), **settings)
    assert together.min() >= 0
    assert together.max() <= 255.01
    assert np.array_equal(together[[6, 1]], shown([6, 1], **settings))
    assert len(np.unique(together.reshape(8, -1).round(), axis=0)) > 2  # images differ
    stained = shown(range(4), dye_amount=0.1, **settings)
    assert stained.min() >= 0
    assert stained.max() <= 255.01


def test_a_probability_is_the_share_of_changed_images(clean: Images) -> None:
    for settings in SETTINGS[:3]:
        changed = (np.abs(shown(range(40), **settings) - clean) > 0.1).any(axis=(1, 2, 3))
        assert 8 < changed.sum() < 32


def test_blur_and_jpeg_take_detail_away_and_noise_adds_some(clean: Images) -> None:
    before = roughness(clean[None])[0]
    blurred = shown(blur=0.05)
    assert (roughness(blurred) <= before).all()  # the narrowest Gaussian changes nothing
    assert (roughness(blurred) < before / 2).sum() > 3
    assert np.allclose(blurred.mean(axis=(1, 2, 3)), clean.mean(), atol=1.5)
    assert (roughness(shown(noise=0.1)) > before).all()
    assert not np.array_equal(shown(jpeg_quality=5), shown(jpeg_quality=99))


def test_noise_is_stronger_in_bright_pixels(clean: Images) -> None:
    added = shown(range(16), noise=0.1) - clean
    dark, bright = (np.isclose(clean, colour, atol=0.01).all(axis=-1) for colour in (NUCLEUS, PLASMA))
    assert added[:, bright][..., 2].std() > 1.1 * added[:, dark][..., 0].std() > 1


def test_a_camera_changes_what_its_setting_names(clean: Images) -> None:
    exposed, balanced = shown(exposure=0.3), shown(white_balance=0.3)
    dark = exposed.mean(axis=(1, 2, 3)) < clean.mean()
    ratio = exposed[dark] / clean
    assert np.allclose(ratio, ratio.mean(axis=(1, 2, 3), keepdims=True), atol=0.01)
    assert balanced.mean(axis=(1, 2)).std(axis=0).min() > 1
    assert np.ptp(shown(midtones=0.4)[:, 24, 24, 0]) > 20
    saturation = shown(saturation=1.0).max(axis=-1) - shown(saturation=1.0).min(axis=-1)
    assert np.ptp(saturation[:, 24, 24]) > 20
    assert np.ptp(shown(contrast=0.4)[:, 24, 24, 0]) > 5


def test_a_cutout_hides_a_rectangle_of_at_most_its_size(clean: Images) -> None:
    for image in shown(cutout=0.5):
        hidden = np.argwhere((np.abs(image - clean) > 0.1).any(axis=-1))
        assert (np.ptp(hidden, axis=0) < SIZE // 2 + 1).all()
        assert len(np.unique(image[tuple(hidden.T)].round(1), axis=0)) == 1


def test_a_background_is_replaced_around_a_cell_that_stays(clean: Images) -> None:
    images = shown(range(20), background=1.0)
    change = np.abs(images - clean).max(axis=-1)
    assert change[:, 24, 24].max() < 1  # the nucleus
    red, plasma = change[:, 4, 4], change[:, 24, 2]
    assert red.max() > 20
    assert plasma.max() > 20
    contrast = np.abs(images[:, 4, 4] - images[:, 24, 2]).max(axis=-1)
    assert contrast.min() < 0.3 * np.abs(clean[4, 4] - clean[24, 2]).max()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("blur_probability", 1.5), ("jpeg_quality", 0), ("cutout", -0.1), ("midtones", 0.7), ("background", 2.0)],
)
def test_a_setting_that_cannot_be_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"data\.augment\.{setting}={value}: must be from"):
        AugmentConfig(**{setting: value})
