"""The phantom data set: what the quickstart, the tests and the stain models rely on."""

import json
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.phantoms.folders import STAINS, render_cell, render_phantoms


def _optical_density(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean density of the channels over bare glass, [size, size]."""
    light = (picture.astype(float) + 1) / 256
    glass = np.quantile(light.reshape(-1, 3), 0.95, axis=0)
    return np.asarray(-np.log(light / glass).mean(axis=2))


@pytest.mark.parametrize("cell_type", CELL_TYPES)
@pytest.mark.parametrize("stain", STAINS)
def test_same_arguments_give_the_same_picture(cell_type: str, stain: str) -> None:
    """Without this no test or benchmark on phantoms could be repeated."""
    first = render_cell(cell_type, stain, slide=3, seed=11, size=64)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    render_cell(cell_type, stain, slide=3, seed=12, size=64)  # nothing of the first may be remembered
    np.testing.assert_array_equal(first, render_cell(cell_type, stain, slide=3, seed=11, size=64))


def test_every_argument_changes_the_picture() -> None:
    """A seed or slide that were ignored would fill the data set with copies, and splits would leak."""
    pictures = [
        render_cell("neutrophil", "giemsa", 3, 11, 64),
        render_cell("neutrophil", "giemsa", 3, 12, 64),
        render_cell("neutrophil", "giemsa", 4, 11, 64),
        render_cell("neutrophil", "violet", 3, 11, 64),
        render_cell("eosinophil", "giemsa", 3, 11, 64),
    ]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one.astype(int) - other.astype(int)).mean() > 3


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_two_stains_of_a_cell_are_aligned_pixel_by_pixel(cell_type: str) -> None:
    """Stain normalisation is scored against the other stain: a shift would punish a perfect model."""
    steps = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    for seed in range(3):
        one, other = (_optical_density(render_cell(cell_type, stain, seed, seed)) for stain in STAINS)
        middle = one[1:-1, 1:-1].ravel()
        moved = {step: np.roll(other, step, (1, 0))[1:-1, 1:-1].ravel() for step in steps}
        match = {step: np.corrcoef(middle, picture)[0, 1] for step, picture in moved.items()}
        assert max(match, key=lambda step: match[step]) == (0, 0)
        assert match[0, 0] > 0.85


def test_stains_look_as_in_their_hospitals() -> None:
    """If both looked alike, the phantom would have no domain gap to close."""

    def glass(stain: str) -> NDArray[np.float64]:
        pictures = [render_cell("platelet", stain, slide, 0, 48).reshape(-1, 3) for slide in range(24)]
        return np.asarray(np.median([np.quantile(picture, 0.9, axis=0) for picture in pictures], axis=0))

    cream, white = glass("giemsa"), glass("violet")
    assert cream[0] - cream[2] > 25  # red above blue
    assert abs(white[0] - white[2]) < 20


def test_a_cell_is_the_same_cell_at_every_size() -> None:
    """Experiments at 64 and 96 pixels would otherwise not speak about the same cells."""
    picture = Image.fromarray(render_cell("monocyte", "giemsa", 5, 5, 128))
    large = picture.resize((64, 64), Image.Resampling.BOX)
    small = _optical_density(render_cell("monocyte", "giemsa", 5, 5, 64))
    assert np.corrcoef(_optical_density(np.asarray(large)).ravel(), small.ravel())[0, 1] > 0.95


def test_rendering_is_fast_enough_for_the_quickstart() -> None:
    """Some thousand cells are rendered before the quickstart trains; about 4 ms each on a free core."""
    render_cell("monocyte", "giemsa", 0, 0)
    start = time.process_time()
    for seed in range(36):
        render_cell(CELL_TYPES[seed % 12], "giemsa", 0, seed)
    assert (time.process_time() - start) / 36 < 0.03


def test_colour_alone_does_not_solve_it() -> None:
    """A phantom that a histogram can read would praise any network, one blind to form included.

    Training and scoring use different slides. A forest on 16-bin histograms of each channel was the
    strongest of forests, extra trees and logistic regression on 16-bin and 8x8x8 histograms.
    """
    histograms, labels, slides = [], [], []
    for label, cell_type in enumerate(CELL_TYPES):
        for seed in range(30):
            for stain in STAINS:
                picture = render_cell(cell_type, stain, seed, seed, 64) >> 4
                histograms.append([np.bincount(picture[..., i].ravel(), minlength=16) for i in range(3)])
                labels.append(label)
                slides.append(seed)
    features, truth = np.sqrt(np.array(histograms).reshape(len(labels), -1)), np.array(labels)
    held_out = np.array(slides) % 10 >= 7
    forest = RandomForestClassifier(200, random_state=0).fit(features[~held_out], truth[~held_out])
    score = balanced_accuracy_score(truth[held_out], forest.predict(features[held_out]))
    assert 1.5 / 12 < score < 0.5


def test_table_lists_every_picture_once_and_keeps_pairs_on_one_slide(tmp_path: Path) -> None:
    """The two stains of one cell on different sides of a split would leak the test set."""
    path = render_phantoms(tmp_path / "phantom", per_type=3, slides=2, size=32, workers=1, progress=False)
    table = pandas.read_csv(path)
    assert list(table.columns) == ["image", "label", "slide", "domain", "pair"]
    assert len(table) == 12 * 3 * 2
    assert set(table["label"]) == set(CELL_TYPES)
    assert set(table["domain"]) == set(STAINS)
    assert (table.groupby("pair")["slide"].nunique() == 1).all()
    assert (table.groupby("pair")["domain"].nunique() == 2).all()
    assert table["slide"].nunique() == 2
    files = {file.relative_to(path.parent).as_posix() for file in path.parent.rglob("*.png")}
    assert files == set(table["image"])
    assert table["image"].is_unique
    row = table.iloc[0]
    picture = np.asarray(Image.open(path.parent / row["image"]))
    np.testing.assert_array_equal(picture, render_cell(row["label"], row["domain"], 0, 0, 32))


def test_unpaired_cells_are_seen_in_one_stain_only(tmp_path: Path) -> None:
    """Unpaired training must not meet the same cell in both domains."""
    path = render_phantoms(tmp_path / "p", 4, slides=4, size=32, workers=1, paired=False, progress=False)
    table = pandas.read_csv(path)
    assert table["pair"].is_unique
    assert len(table) == 12 * 4
    assert (table.groupby("slide")["domain"].nunique() == 1).all()
    assert (table["domain"].value_counts() == 24).all()


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    """A data set's content hash must not depend on the machine's cores."""
    one = render_phantoms(tmp_path / "one", 2, size=32, workers=1, cell_types=("basophil",), progress=False)
    two = render_phantoms(tmp_path / "two", 2, size=32, workers=2, cell_types=("basophil",), progress=False)
    assert one.read_bytes() == two.read_bytes()
    for image in pandas.read_csv(one)["image"]:
        assert (one.parent / image).read_bytes() == (two.parent / image).read_bytes()


def test_same_request_again_touches_nothing_and_another_one_is_refused(tmp_path: Path) -> None:
    """The quickstart runs again and again; a user's own folder must never be overwritten."""
    folder = tmp_path / "phantom"
    path = render_phantoms(folder, 1, size=32, workers=1, cell_types=("platelet",), progress=False)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert render_phantoms(folder, 1, size=32, workers=1, cell_types=("platelet",), progress=False) == path
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert json.loads((folder / "phantom.json").read_text())["cell_types"] == ["platelet"]
    with pytest.raises(UserError, match="holds other files"):
        render_phantoms(folder, 2, size=32, workers=1, cell_types=("platelet",), progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["phantom"]


def test_a_failure_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-rendered folder taken for a whole one would train on a part of the types."""

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        render_phantoms(tmp_path / "phantom", 1, size=32, workers=1, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell_types": ("neutrophile",)}, "unknown cell type 'neutrophile'; choose from basophil"),
        ({"stains": ("wright",)}, "unknown stain 'wright'; choose from giemsa, violet"),
        ({"per_type": 0}, "per_type is 0, it must be at least 1"),
        ({"stains": ()}, "nothing to render"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    """A user should read what is wrong, not a traceback."""
    with pytest.raises(UserError, match=message):
        render_phantoms(tmp_path / "p", **({"per_type": 1, "progress": False} | arguments))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
