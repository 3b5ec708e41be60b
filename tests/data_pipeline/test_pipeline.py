"""If these fail, what the network sees is not what the augmentations' settings say."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from data_pipeline.stream.augmentations import Augmentation, Parameters
from data_pipeline.stream.augmentations.geometry import Geometry, Kind, regions_of
from data_pipeline.stream.augmentations.stain import STAIN_VECTORS, STEPS_PER_DENSITY, Stain
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.pipeline import GraphConfig, GraphInputs, build_graph

SIZE = 32
GEOMETRIES: dict[Kind, Geometry] = {
    "region": Geometry(rotation_step=90),
    "affine": Geometry(),
}
KEY = 3


@pytest.fixture
def image() -> npt.NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(20, 250, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def run_graph(
    image: npt.NDArray[np.uint8],
    affine: npt.NDArray[np.float32] | None = None,
    matrix: npt.NDArray[np.float32] | None = None,
    offset: npt.NDArray[np.float32] | None = None,
    crop: float | None = None,
    kind: Kind = "affine",
) -> npt.NDArray[np.float32]:
    """The graph's output as intensities 0..255, [SIZE, SIZE, 3]."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    encoded = np.frombuffer(data.getvalue(), np.uint8)
    operations: list[Augmentation] = []
    parameters: Parameters = {}
    if affine is not None:
        operations.append(GEOMETRIES[kind])
        drawn = regions_of(affine[None], SIZE) if kind == "region" else {"affine": affine[None]}
        parameters |= {f"geometry.{name}": values for name, values in drawn.items()}
    if matrix is not None:
        operations.append(Stain(channel_gain=0.1))
        parameters["stain.matrix"] = matrix[None] * STEPS_PER_DENSITY
        parameters["stain.offset"] = (0 * matrix[:1] if offset is None else offset[None]) * STEPS_PER_DENSITY
    data = StreamConfig(image_size=SIZE, threads=1, prefetch=1)
    config = GraphConfig(data, 1, tuple(operations), crop is not None)
    kept = None if crop is None else np.array([crop], np.float32)
    pipeline = build_graph(config, lambda: GraphInputs([encoded], parameters, kept), None)
    return (pipeline.run()[0].as_array()[0].transpose(1, 2, 0) + 1) * 127.5


def test_an_image_comes_through_unchanged_when_nothing_moves(image: npt.NDArray[np.uint8]) -> None:
    assert np.abs(run_graph(image) - image).max() < 0.01
    assert np.abs(run_graph(image, np.eye(2, 3, dtype=np.float32), np.eye(3, dtype=np.float32)) - image).max() < 0.6


def test_stain_augmentation_is_the_matrix_and_offset_in_optical_density(image: npt.NDArray[np.uint8]) -> None:
    generator = np.random.default_rng(1)
    matrix = (np.eye(3) + 0.15 * generator.standard_normal((3, 3))).astype(np.float32)
    offset = (0.05 * generator.standard_normal(3)).astype(np.float32)
    density = -np.log((image.astype(np.float64) + 1) / 256)
    expected = 256 * np.exp(-np.maximum(density @ matrix.T + offset, 0)) - 1
    assert np.abs(run_graph(image, matrix=matrix, offset=offset) - expected.clip(0, 255)).max() < 0.1


def test_a_mirror_and_a_quarter_turn_are_exact(image: npt.NDArray[np.uint8]) -> None:
    mirror = np.array([[-1, 0, SIZE], [0, 1, 0]], np.float32)
    assert np.abs(run_graph(image, mirror) - image[:, ::-1]).max() < 0.6
    turn = np.array([[0, -1, SIZE], [1, 0, 0]], np.float32)
    assert np.abs(run_graph(image, turn) - np.rot90(image, axes=(0, 1))).max() < 0.6


def test_a_mirror_and_quarter_turns_read_as_a_region_are_exact(image: npt.NDArray[np.uint8]) -> None:
    affine, _ = Geometry(rotation_step=90, scale=1.0, shift=0.0).maps(KEY, np.arange(60), SIZE)
    found = set()
    for matrix in np.unique(affine.round(4), axis=0):
        turned = next(
            (turns, mirrored) for turns in range(4) for mirrored in (False, True) if _maps(matrix, turns, mirrored)
        )
        found.add(turned)
        expected = np.rot90(image[:, ::-1] if turned[1] else image, turned[0])
        assert np.abs(run_graph(image, matrix, kind="region") - expected).max() < 0.6
    assert len(found) == 8


def _maps(affine: npt.NDArray[np.float32], turns: int, mirrored: bool) -> bool:
    """Whether an affine map takes each output pixel from where mirroring and turning take it."""
    y, x = np.mgrid[:SIZE, :SIZE]
    places = np.stack([x, y, np.ones_like(x)], -1) + np.array([0.5, 0.5, 0])
    taken = places @ affine.T - 0.5
    moved = [np.rot90(grid[:, ::-1] if mirrored else grid, turns) for grid in (x, y)]
    return np.abs(taken - np.stack(moved, -1)).max() < 1e-3


def test_a_region_shows_what_the_affine_map_shows(image: npt.NDArray[np.uint8]) -> None:
    """Zoomed and shifted: two ways of interpolating, the same place."""
    geometry = Geometry(rotation_step=90, scale=1.3, shift=0.1)
    assert geometry.kind == "region"
    smooth = np.asarray(Image.fromarray(image).resize((4, 4)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    matrices, _ = geometry.maps(KEY, np.arange(12), SIZE)
    for matrix in matrices:
        difference = np.abs(run_graph(smooth, matrix, kind="region") - run_graph(smooth, matrix))[inside(matrix)]
        assert difference.mean() < 2.0
        assert difference.max() < 16.0


def inside(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Pixels of the output [SIZE, SIZE] that show the image, not what lies past its border."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    place = np.stack([x, y, np.ones_like(x)], -1) @ matrix.T
    return ((place >= 0.5) & (place <= SIZE - 0.5)).all(axis=-1)


def test_past_the_border_a_region_shows_the_mirrored_image(image: npt.NDArray[np.uint8]) -> None:
    """Streaks of a repeated border would tell a network how much an image was zoomed."""
    half = np.array([[2, 0, -SIZE / 2], [0, 2, -SIZE / 2]], np.float32)
    shown = run_graph(image, half, kind="region")
    quarter = SIZE // 4
    assert inside(half).sum() == (SIZE // 2) ** 2
    assert np.array_equal(shown[:quarter], shown[quarter : 2 * quarter][::-1])
    assert np.array_equal(shown[:, -quarter:], shown[:, -2 * quarter : -quarter][:, ::-1])
    turned = np.array([[0, -1.2, SIZE], [1.2, 0, 3]], np.float32)
    assert run_graph(image, turned, kind="region").shape == shown.shape  # past two of four borders


@pytest.mark.parametrize(
    ("geometry", "kind"),
    [
        (Geometry(flip=False, rotation=0, scale=1, shift=0), "none"),
        (Geometry(rotation=0, scale=1, shift=0), "mirror"),
        (Geometry(rotation=0), "region"),
        (Geometry(rotation_step=90), "region"),
        (Geometry(rotation_step=45), "affine"),
        (Geometry(), "affine"),
    ],
)
def test_the_cheapest_geometry_is_taken_that_holds_every_map(geometry: Geometry, kind: Kind) -> None:
    assert geometry.kind == kind
    assert geometry.active == (kind != "none")


@pytest.mark.parametrize(("crop", "kept"), [(1.0, slice(0, 32)), (0.8, slice(3, 29)), (0.5, slice(8, 24))])
def test_a_crop_keeps_the_middle_before_anything_moves(image: npt.NDArray[np.uint8], crop: float, kept: slice) -> None:
    """Off the middle or by another factor, the cells of two domains would not come to one scale."""
    middle = np.ascontiguousarray(image[kept, kept])
    assert (run_graph(image, crop=crop) == run_graph(middle)).all()
    mirror = np.array([[-1, 0, SIZE], [0, 1, 0]], np.float32)
    matrix = np.diag([1.1, 0.9, 1.2]).astype(np.float32)
    moved = run_graph(image, mirror, matrix, crop=crop)
    assert (moved == run_graph(middle, mirror, matrix)).all(), "the crop was fed as a move"


def test_geometry_turns_about_the_middle_and_scales_by_the_drawn_factor() -> None:
    affine = Geometry(scale=1.5, shift=0.0).maps(KEY, np.arange(200), SIZE)[0].astype(np.float64)
    centre = np.array([SIZE / 2, SIZE / 2, 1])
    assert np.abs(affine @ centre - SIZE / 2).max() < 1e-4
    areas = np.abs(np.linalg.det(affine[:, :, :2]))
    assert areas.min() > 1.5**-2 - 1e-6
    assert areas.max() < 1.5**2 + 1e-6
    assert areas.std() > 0.2
    assert 60 < (np.linalg.det(affine[:, :, :2]) < 0).sum() < 140  # about half are mirrored


def test_dyes_are_scaled_apart_from_each_other() -> None:
    """More methylene blue must move colours along its own vector and no other."""
    matrices, offsets = Stain(dye_amount=0.3).changes(KEY, np.arange(50))
    for dye in STAIN_VECTORS:
        moved = matrices @ dye.astype(np.float32)
        along = moved @ dye / (dye @ dye)
        assert np.abs(moved - along[:, None] * dye).max() < 1e-5
    assert (offsets == 0).all()


def test_stain_probability_leaves_the_others_alone() -> None:
    stain = Stain(channel_gain=0.3, channel_mixing=0.1, density_offset=0.1, stain_probability=0.25)
    matrices, _ = stain.changes(KEY, np.arange(2000))
    untouched = np.abs(matrices - np.eye(3)).max(axis=(1, 2)) < 1e-5
    assert 0.7 < untouched.mean() < 0.8
