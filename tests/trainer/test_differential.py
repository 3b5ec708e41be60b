"""If these fail, a patient's count is wrong, or its interval says more than is known."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from trainer.metrics.differential import corrected_shares, count_types, wilson
from trainer.tasks.classification.inference.counting import read_ranges

TYPES = ("basophil", "erythroblast", "lymphocyte", "neutrophil")
WHITE = np.array([True, False, True, True])


def test_shares_are_of_white_cells_alone() -> None:
    named = ["neutrophil"] * 60 + ["lymphocyte"] * 40 + ["erythroblast"] * 25
    counted = count_types("7", named, TYPES)
    assert counted.white_cells == 100
    assert [each.count for each in counted.types.values()] == [0, 25, 40, 60]
    assert counted.types["neutrophil"].share.value == 0.6
    assert counted.types["erythroblast"].share.value is None
    assert counted.types["neutrophil"].corrected.value is None


def test_an_interval_is_wilsons() -> None:
    """Wilson 1927: for 10 of 100, 0.0552 to 0.1744; for none of 200, up to 0.0188."""
    found = wilson(10, 100)
    assert (found.low, found.high) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert wilson(0, 200).high == pytest.approx(0.0188, abs=1e-4)
    assert wilson(0, 0).value is None


@pytest.mark.parametrize(("cells", "said"), [(99, "too few"), (100, "fewer than the 200"), (200, "")])
def test_few_cells_are_warned_about(cells: int, said: str) -> None:
    warning = count_types("7", ["neutrophil"] * cells, TYPES).warning
    assert said in warning
    assert bool(warning) == bool(said)


def test_a_classifiers_confusions_are_taken_out_again() -> None:
    """A fifth of the lymphocytes are called basophils, and all of 0.3 lymphocytes come back, no basophil."""
    confusions = np.diag([100.0] * 4)
    confusions[2] = [20, 0, 80, 0]
    found = corrected_shares(np.array([60, 0, 240, 700]), confusions, WHITE)
    assert found is not None
    assert [each.value for each in found] == pytest.approx([0, 0, 0.3, 0.7], abs=1e-9)
    assert all(each.low <= each.value <= each.high for each in found)  # type: ignore[operator]
    assert found[0].high is not None
    assert 0.005 < found[0].high < 0.05  # none was left over, yet some may be there
    assert corrected_shares(np.zeros(4, int), confusions, WHITE) is None
    assert corrected_shares(np.array([1, 1, 1, 1]), confusions * np.array([[1], [1], [0], [1]]), WHITE) is None


def test_corrected_intervals_hold_the_truth() -> None:
    """Thirty patients of 200 cells, with a classifier that is wrong in one lymphocyte of ten."""
    draw, truth = np.random.default_rng(0), np.array([0.05, 0.0, 0.35, 0.6])
    rates = np.array([[0.95, 0, 0.05, 0], [0, 1, 0, 0], [0.1, 0, 0.9, 0], [0.01, 0, 0.01, 0.98]])
    held = np.zeros(4)
    for patient in range(30):
        confusions = np.array([draw.multinomial(60, row) for row in rates])
        counts = draw.multinomial(200, truth @ rates)
        found = corrected_shares(counts, confusions, WHITE, seed=patient)
        assert found is not None
        held += [each.low <= true <= each.high for each, true in zip(found, truth, strict=True)]  # type: ignore[operator]
    assert (held >= 26).all()


def test_reference_ranges_are_read_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ranges.csv"
    path.write_text("cell_type,low,high\nNeutrophil,40,75\n")
    assert read_ranges(path) == {"neutrophil": (40, 75)}
    for wrong in ("neutrophil,75,40", "red cell,1,2", "neutrophil,a,2"):
        path.write_text(f"cell_type,low,high\n{wrong}\n")
        with pytest.raises(UserError, match="line 2: write one of basophil"):
            read_ranges(path)
