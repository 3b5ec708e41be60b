"""If these fail, what answers right after installation is not the classifier that its card describes, or too large."""

import os
from pathlib import Path

import pandas as pd
import pytest

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.stream.stream import Topology
from trainer.runs.shipped import SHIPPED
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.inference.prediction import PredictOptions, predict_images

LABORATORIES = ("barcelona", "munich", "bccd")


def test_it_is_small_calibrated_and_knows_its_scale() -> None:
    trained = load_classifier(SHIPPED)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) < 9_000_000
    assert trained.checkpoint.path.stat().st_size < 8_000_000
    assert trained.calibration.checkpoint == trained.checkpoint.digest
    assert set(trained.cell_types) < set(CELL_TYPES)
    assert trained.config.nucleus_share is not None
    assert set(trained.domains) == set(LABORATORIES)


def test_its_card_names_licences_and_scores_of_each_laboratory_and_no_machine() -> None:
    card = (SHIPPED / "model_card.md").read_text()
    for words in ("CC BY 4.0. Acevedo", "CC BY 3.0. Matek", "MIT. Shenggan", "Not a medical device"):
        assert words in card
    for laboratory in LABORATORIES:
        assert f"test split, domain {laboratory}" in card
    written = [path for path in SHIPPED.rglob("*") if path.suffix in (".md", ".json", ".yaml")]
    assert written
    for path in written:
        assert f"{os.sep}work{os.sep}" not in path.read_text()


def test_it_answers(tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For images of a laboratory that it does not know, at their own scale."""
    images = tiny_dataset.root.parent / "raw"
    predict_images([SHIPPED], images, tmp_path / "out", PredictOptions(None, 1, None), Topology())
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    assert len(table) == 120
    assert table[[name for name in table if name.startswith("p:")]].sum(axis=1).sub(1).abs().max() < 1e-4
    assert "no unfamiliarity" not in capsys.readouterr().err
