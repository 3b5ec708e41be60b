"""If these fail, a classifier's probabilities do not mean what they say, or differ from one place to the next."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from tests.conftest import Launch
from tests.launchers.test_launchers import TINY, assert_refused
from trainer.metrics.classification import score
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.uncertainty.calibration import (
    FILE,
    LEAST_IMAGES,
    calibrated_probabilities,
    fit_temperature,
    load_calibration,
    save_calibration,
)


def drawn(temperature: float, images: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [n, 4] of a classifier that is too sure by this factor, and labels [n]."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((images, 4), generator=generator)
    labels = logits.softmax(dim=1).multinomial(1, generator=generator)[:, 0]
    return logits * temperature, labels


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0, 40.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(true: float) -> None:
    logits, labels = drawn(true)
    found = fit_temperature(logits, labels, "c0ffee")
    assert found.temperature == pytest.approx(true, rel=0.06)
    assert (found.images, found.remark, found.checkpoint) == (4000, "", "c0ffee")
    loss = functional.cross_entropy(logits / found.temperature, labels)
    assert all(loss <= functional.cross_entropy(logits / (found.temperature * by), labels) for by in (0.98, 1.02))
    types, groups = ("a", "b", "c", "d"), [""] * 4000
    before, after = (
        score(calibrated_probabilities(logits, by).numpy(), labels.numpy(), groups, types, bootstrap_samples=0)
        for by in (1.0, found.temperature)
    )
    assert after["accuracy"] == before["accuracy"]
    assert after["calibration_error"].value < 0.03
    if true != 1:
        assert after["calibration_error"].value < before["calibration_error"].value - 0.05
        assert after["negative_log_likelihood"].value < before["negative_log_likelihood"].value


def test_without_evidence_the_temperature_stays_one() -> None:
    """Right answers alone would make a classifier surer without end."""
    logits, labels = drawn(3.0, images=100)
    for few, truth, words in (
        (logits[: LEAST_IMAGES - 1], labels[: LEAST_IMAGES - 1], "fewer than"),
        (logits, torch.zeros_like(labels), "of one type"),
        (logits, logits.argmax(dim=1), "validation images are right"),
        (torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]).repeat(20, 1)[::2], torch.tensor([1, 1, 1, 1] * 5), "one type"),
    ):
        found = fit_temperature(few, truth, "")
        assert found.temperature == 1
        assert words in found.remark


def test_a_type_held_for_impossible_is_no_obstacle() -> None:
    """Naive Bayes gives it a logit of minus infinity, at any temperature."""
    logits, labels = drawn(3.0)
    barred = torch.cat([logits, torch.full((len(logits), 1), -torch.inf)], dim=1)
    labels[:5] = 4
    assert fit_temperature(barred, labels, "").temperature == pytest.approx(3.0, rel=0.06)


@given(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3, unique=True), st.floats(0.1, 100))
def test_no_answer_changes(logits: list[float], temperature: float) -> None:
    table = torch.tensor([logits])
    if (table.sort(dim=1).values.diff(dim=1) > 1e-6).all():
        assert calibrated_probabilities(table, temperature).argmax() == table.argmax()


def test_a_calibration_is_of_one_checkpoint_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert load_calibration(tmp_path, "a").temperature == 1  # runs of before there was one
    logits, labels = drawn(3.0)
    fitted = fit_temperature(logits, labels, "a")
    save_calibration(tmp_path, fitted)
    assert load_calibration(tmp_path, "a") == fitted
    assert load_calibration(tmp_path, "b").temperature == 1
    assert "not fitted" in load_calibration(tmp_path, "b").remark
    changed = (tmp_path / FILE).read_text().replace(': "a"', ': "b"')
    for text in (changed, '{"temperature": ', '{"heat": 1}', json.dumps({"temperature": 0})):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match=r"calibration\.json: not a calibration"):
            load_calibration(tmp_path, "a")


def test_one_temperature_from_training_to_prediction(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """Fitted on validation images, told in the record and the report, used by all that give probabilities."""
    train = ("train_classifier", f"shards={tiny_dataset.root}", "run=run", *TINY, "train.epochs=2")
    done = launch(*train)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    record = json.loads((run / "evaluation/metrics.json").read_text())
    trained = load_classifier(run)
    fitted = trained.calibration
    assert fitted.checkpoint == trained.checkpoint.digest
    assert record["calibration"]["temperature"] == fitted.temperature
    assert record["calibration"]["validation_images"] == fitted.images == len(tiny_dataset.samples(["validation"]))
    assert launch(*train).returncode == 0
    assert json.loads((run / "evaluation/metrics.json").read_text()) == record

    # By hand, so that it is far from 1: a run whose calibration is there is not fitted again.
    save_calibration(run, replace(fitted, temperature=2.5, remark="by hand"))
    raw = tiny_dataset.root.parent / "raw"
    before = pd.read_parquet(run / "evaluation/metrics.parquet")
    assert launch("evaluate", "run=run").returncode == 0
    after = pd.read_parquet(run / "evaluation/metrics.parquet")
    columns = [name for name in after if str(name).startswith("p:")]
    expected = before[columns].to_numpy(np.float64) ** (fitted.temperature / 2.5)
    np.testing.assert_allclose(after[columns], expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    assert (after["predicted"] == before["predicted"]).all()
    again = json.loads((run / "evaluation/metrics.json").read_text())
    assert again["scores"]["overall"]["accuracy"] == record["scores"]["overall"]["accuracy"]
    assert again["calibration"]["uncalibrated"] == record["calibration"]["uncalibrated"]
    assert (
        again["scores"]["overall"]["negative_log_likelihood"] != record["scores"]["overall"]["negative_log_likelihood"]
    )
    report = (run / "report.html").read_text()
    assert "Temperature 2.500 was fitted on" in report
    assert "at temperature 2.50" in report  # in the drawing, beside the one as trained
    assert "as trained</text>" in report

    told = launch("export", "run=run", "format=onnx")
    assert told.returncode == 0, told.stderr
    assert json.loads((run / "export-onnx/model.json").read_text())["temperature"] == 2.5
    for name in ("run", "run/export-onnx"):
        done = launch("predict", f"run={name}", f"images={raw}", "out=out", "min_confidence=0.4")
        assert done.returncode == 0, done.stderr
        predicted = pd.read_csv(tmp_path / "out/predictions.csv").set_index("path")
        assert len(predicted) == len(list(raw.rglob("*.png")))  # none is dropped
        mine = predicted.loc[[str(raw / path) for path in after["path"]]]
        np.testing.assert_allclose(mine[columns], after[columns], atol=1e-4)
        assert (predicted["uncertain"] == (predicted["confidence"] < 0.4)).all()
        assert predicted["uncertain"].any()
        assert (tmp_path / "out/gallery.html").read_text().count("<em>uncertain</em>") == predicted["uncertain"].sum()
    assert_refused(launch("predict", "run=run", f"images={raw}", "out=out", "min_confidence=90"), "min_confidence=90")
