"""If these fail, the classifier that is shipped answers otherwise than the one that was trained, or cannot be used."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import trainer.runs.shipped as shipped
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from launchers.count import main as count
from launchers.evaluate import main as evaluate
from launchers.export import main as export
from launchers.predict import main as predict
from tests.data_pipeline.test_fields import write_field
from tests.launchers.test_launchers import TINY
from trainer.metrics.evaluation import load_evaluations
from trainer.runs.provenance import learned_by_run
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.inference.raw_classifier import load_raw_classifier


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> Path:
    """A run of one epoch."""
    from launchers.train_classifier import main as train

    run = tmp_path_factory.mktemp("runs") / "trained"
    train([f"shards={tiny_dataset.address}", f"run={run}", *TINY])
    return run


@pytest.fixture(scope="module")
def compact(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compact") / "small"
    export([f"run={trained}", "format=safetensors", f"out={out}"])
    return out


def test_half_the_weights_give_the_same_answers_within_a_hundredth(trained: Path, compact: Path) -> None:
    whole, half = (load_raw_classifier([run], None) for run in (trained, compact))
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    answers = [each.network(images).softmax(dim=1).detach() for each in (whole, half)]
    assert 0 < float((answers[0] - answers[1]).abs().max()) < 1e-2
    assert (half.cell_types, half.storage, half.crop) == (whole.cell_types, whole.storage, whole.crop)
    assert half.temperature == whole.temperature
    (weights,) = (compact / "checkpoints").iterdir()
    large = [value.dtype for value in load_file(weights).values() if value.numel() > 20_000]
    assert set(large) == {torch.float16}
    assert next(load_classifier(compact).network.parameters()).dtype == torch.float32


def test_it_knows_what_it_learned_from_and_names_no_folder_of_its_machine(trained: Path, compact: Path) -> None:
    assert len(learned_by_run(compact)) == len(learned_by_run(trained)) > 0
    for path in (path for path in compact.rglob("*") if path.is_file()):
        assert str(trained.parent).encode() not in path.read_bytes(), path
    card = (compact / "model_card.md").read_text()
    assert "# small" in card
    assert "## Scores: own test split" in card


def test_it_keeps_its_scores_for_corrected_counts_and_is_scored_elsewhere(
    trained: Path, compact: Path, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares are corrected by the confusion matrix; an installation is not written into."""
    (own,), (kept,) = load_evaluations(trained), load_evaluations(compact)
    assert kept.is_own_test
    assert kept.record.scores == own.record.scores
    images, before = tmp_path / "out", sorted(compact.rglob("*"))
    count([f"run={compact}", f"images={tiny_dataset.root.parent / 'raw'}", f"out={images}"])
    assert not pd.read_csv(images / "differential.csv")["corrected_percent"].isna().all()
    monkeypatch.setattr(shipped, "SHIPPED", compact)
    evaluate(["run=shipped", f"shards={tiny_dataset.address}", f"out={tmp_path / 'scores'}"])
    (scored,) = load_evaluations(tmp_path / "scores")
    assert scored.record.scores.count == own.record.scores.count
    assert "Scores in scores" in (tmp_path / "scores" / "report.html").read_text()
    assert sorted(compact.rglob("*")) == before


def test_weights_that_were_changed_are_refused(compact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    compact.rename(copy)
    try:
        (weights,) = (copy / "checkpoints").iterdir()
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match="damaged"):
            load_classifier(copy)
        weights.write_bytes(whole)
    finally:
        copy.rename(compact)


def test_predict_without_a_run_takes_the_shipped_classifier(
    compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_field(tmp_path / "fields", "a", 1, ("WBC", 60, 40, 80, 60), ("WBC", 110, 70, 130, 90), ("RBC", 1, 1, 9, 9))
    arguments = [f"images={tmp_path / 'fields'}", f"out={tmp_path / 'out'}"]
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "none")
    with pytest.raises(UserError, match="no classifier is shipped with this version: give run=DIR"):
        predict(arguments)
    monkeypatch.setattr(shipped, "SHIPPED", compact)
    predict(arguments)
    answers = pd.read_csv(tmp_path / "out" / "predictions.csv")
    names = [path.rpartition("/")[2] for path in answers["path"]]
    assert names == ["a.png#xywh=100,60,40,40", "a.png#xywh=50,30,40,40"]
    assert "data:image/jpeg" in (tmp_path / "out" / "gallery.html").read_text()
