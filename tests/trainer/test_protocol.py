"""If these fail, the thesis's protocol, a control, is not what it is called, or its result passes for a score."""

import json
from pathlib import Path

import pytest

from data_pipeline.banks.balance import balance_dataset
from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.curate import split_of
from tests.conftest import TINY_TYPES, Launch
from tests.generated_images import bank_facts, make_bank
from trainer.metrics.evaluation import load_evaluations
from trainer.runs.audit import audit_run
from trainer.runs.provenance import learned_by_run
from trainer.tasks.classification.reports.control_record import read_control

TRAIN = ("model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.epochs=1", "train.global_batch=12")


@pytest.fixture
def balanced(tiny_dataset: Dataset, tmp_path: Path) -> Dataset:
    """60 training images of each type, most of them generated."""
    facts = bank_facts(TINY_TYPES, "giemsa", dataset_hash=tiny_dataset.content_hash)
    make_bank(tmp_path / "bank", 40, facts)
    config = BalanceConfig(str(tiny_dataset.root), [str(tmp_path / "bank")], str(tmp_path / "balanced"), "60")
    balance_dataset(config, progress=False)
    return Dataset.open(tmp_path / "balanced")


def test_all_images_are_dealt_after_balancing_and_the_result_is_no_score(
    balanced: Dataset, launch: Launch, tmp_path: Path
) -> None:
    done = launch("train_classifier", f"shards={balanced.root}", "run=run", "protocol=balance_first", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "CONTROL, not a score" in done.stdout
    run, rows = tmp_path / "run", balanced.samples().set_index("id")
    test = [name for name in rows.index if split_of(name) == "test"]
    record = read_control(run)
    assert record.protocol == "balance_first"
    assert record.dataset.split == "control", "no split of a data set: it mixes with no other score"
    assert record.dataset.count == len(test)
    assert record.origins == rows.loc[test, "origin"].value_counts().to_dict()
    assert record.origins["synthetic"] > record.origins["real"] > 0
    shares = record.accuracy_by_origin
    assert shares.keys() == record.origins.keys()
    right = sum(shares[name] * count for name, count in record.origins.items())
    assert right / len(test) == pytest.approx(record.scores["accuracy"].value)
    assert record.known_groups == record.dataset.count, "every slide and the generator are trained on"
    assert json.loads((run / "control.json").read_text())["protocol"] == "balance_first"

    page = (run / "report.html").read_text()
    assert "CONTROL, not a score" in page
    assert "No score: under this protocol" in page
    assert "has not been scored yet" not in page, "it cannot be"

    # What reads scores finds none; what asks whether images were seen knows.
    assert load_evaluations(run) == []
    with pytest.raises(UserError, match="no evaluation there yet"):
        audit_run(run, None, Dataset.open)
    learned = set(learned_by_run(run).table["id"])
    real = rows[rows["origin"] == "real"]
    assert learned >= {name for name in real.index if split_of(name) != "test"}
    refused = launch("evaluate", "run=run", f"shards={balanced.root}")
    assert refused.returncode == 2
    assert "were used to train or choose the network" in refused.stderr


def test_a_run_without_control_and_a_model_without_steps_are_refused(
    balanced: Dataset, launch: Launch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no control\.json: train it with protocol=balance_first"):
        read_control(tmp_path)
    arguments = (f"shards={balanced.root}", "run=bayes", "protocol=balance_first", "model=naive_bayes")
    refused = launch("train_classifier", *arguments, "data.image_size=32", "data.threads=1", "train.epochs=1")
    assert refused.returncode == 2
    assert "not trained in steps" in refused.stderr
    assert not (tmp_path / "bayes").exists()
