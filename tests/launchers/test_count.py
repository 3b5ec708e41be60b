"""If these fail, the way from fields to a patient's count is broken, or a cell is counted for another patient."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from launchers.count import main as count
from tests.launchers.test_launchers import TINY
from tests.trainer.test_nuclei import draw_field

WHITE_CELLS = {"a/1.png": 2, "a/2.png": 1, "b/1.png": 1, "c/1.png": 0}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> Path:
    """A run of one epoch."""
    from launchers.train_classifier import main as train

    run = tmp_path_factory.mktemp("runs") / "classifier"
    train([f"shards={tiny_dataset.address}", f"run={run}", *TINY])
    return run


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Fields of three patients, the last without white cells, and a file that is no image."""
    root = tmp_path / "fields"
    for path, cells in WHITE_CELLS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_field([(200, 220), (480, 300)][:cells])).save(root / path)
    (root / "a" / "broken.png").write_bytes(b"no image")
    return root


def counted(out: Path) -> dict[str, int]:
    """White cells of each patient, as differential.csv has them."""
    table = pd.read_csv(out / "differential.csv", dtype={"patient": str})
    assert set(table["cell_type"]) == {"basophil", "eosinophil", "lymphocyte"}
    totals = table.groupby("patient")["count"].sum()
    assert (table.groupby("patient")["white_cells"].first() == totals).all()
    return {str(patient): int(cells) for patient, cells in totals.items()}


def test_fields_become_a_count_of_each_patient(
    fields: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ranges = tmp_path / "out", tmp_path / "ranges.csv"
    ranges.write_text("cell_type,low,high\nlymphocyte,20,45\n")
    count([f"run={classifier}", f"fields={fields}", f"out={out}", f"reference={ranges}"])
    assert counted(out) == {"a": 3, "b": 1, "c": 0}
    table = pd.read_csv(out / "differential.csv")
    of_a = table[table["patient"] == "a"]
    assert of_a["percent"].sum() == pytest.approx(100, abs=0.1)
    assert (of_a["low"] <= of_a["percent"]).all()
    assert of_a["warning"].str.contains("too few").all()
    assert of_a["corrected_percent"].sum() == pytest.approx(100, abs=0.1)
    assert len(pd.read_csv(out / "predictions.csv")) == 4
    said = capsys.readouterr()
    assert "a/broken.png: not an image" in said.err
    assert "c: 0 white cells" in said.err
    page = (out / "report.html").read_text()
    assert page.count('class="field"') == len(WHITE_CELLS)
    assert "20 to 45" in page


def test_cells_are_cut_in_squares_of_one_side(fields: Path, classifier: Path, tmp_path: Path) -> None:
    scale = ("side_microns=15", "microns_per_pixel=0.1")
    count([f"run={classifier}", f"fields={fields / 'b'}", f"out={tmp_path / 'out'}", *scale])
    (path,) = pd.read_csv(tmp_path / "out" / "predictions.csv")["path"]
    assert path.endswith(",150,150")
    with pytest.raises(UserError, match="side_microns= goes with fields= and microns_per_pixel="):
        count([f"run={classifier}", f"images={fields}", f"out={tmp_path / 'out'}", *scale])


def test_images_of_single_cells_are_counted_for_the_patients_of_a_table(
    fields: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fields / "a" / "broken.png").unlink()
    table = tmp_path / "patients.csv"
    table.write_text("image,patient\na/1.png,007\nb/1.png,7\na/2.png,8\n")
    count([f"run={classifier}", f"images={fields}", f"patients={table}", f"out={tmp_path / 'out'}"])
    assert counted(tmp_path / "out") == {"7": 2, "8": 1}
    assert "1 image(s) without a patient are not counted (c/1.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("a/9.png,7", r"line 2: no image 'a/9\.png'"),
        ("a/1.png,7\na/1.png,8", r"line 3: 'a/1\.png' has another patient further up"),
        ("a/1.png,unknown", "names no patient"),
    ],
)
def test_a_wrong_table_of_patients_is_one_line_before_anything_is_written(
    fields: Path, classifier: Path, tmp_path: Path, lines: str, says: str
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text(f"image,patient\n{lines}\n")
    with pytest.raises(UserError, match=says):
        count([f"run={classifier}", f"fields={fields}", f"patients={table}", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_fields_without_a_white_cell_are_refused(fields: Path, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no white cell found in 1 fields"):
        count([f"run={classifier}", f"fields={fields / 'c'}", f"out={tmp_path / 'out'}"])
