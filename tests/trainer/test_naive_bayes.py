"""If these fail, naive Bayes is not scored as the other classifiers are, or not the same on any number of processes."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.naive_bayes import GaussianNB

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Stream, Topology
from launchers.console import read_config
from models.classifiers.architectures.naive_bayes import NaiveBayes
from models.classifiers.hand_features import FEATURES, hand_features
from tests.conftest import TINY_TYPES, Launch
from trainer.loop.log import read_records
from trainer.runs.training import train
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.training.fitting import take_fit

ARGUMENTS = ("model=naive_bayes", "data.image_size=32", "data.threads=1", "train.global_batch=12", "train.epochs=5")


@dataclass(frozen=True)
class Finished:
    """A run of naive Bayes on the tiny data set, and after which of its epochs it said that it was the last."""

    run: Path
    config: ClassifierRunConfig
    epochs: list[bool]


@pytest.fixture(scope="module")
def finished(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run = tmp_path_factory.mktemp("naive-bayes") / "run"
    arguments = (f"shards={tiny_dataset.root}", f"run={run}", *ARGUMENTS)
    config = read_config(ClassifierRunConfig, "train_classifier", arguments)
    epochs: list[bool] = []
    train(config, Topology(), epochs.append)
    return Finished(run, config, epochs)


def fitted_numbers(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_classifier(run).network.state_dict())


def test_probabilities_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    features = generator.normal(size=(200, len(FEATURES))) * 10 + 3 * labels[:, None]
    theirs = GaussianNB().partial_fit(features, labels, classes=range(4))  # nothing of type 3
    ours = NaiveBayes(4)
    take_fit(ours, theirs)
    found = ours.classify(torch.from_numpy(features)).exp().numpy()
    known = GaussianNB().fit(features, labels).predict_proba(features)
    np.testing.assert_allclose(found[:, :3], known, atol=1e-9)
    assert (found[:, 3] == 0).all()


def test_it_is_fitted_to_each_training_image_once_as_the_stream_shows_it(
    finished: Finished, tiny_dataset: Dataset
) -> None:
    trained = load_classifier(finished.run)
    assert trained.cell_types == TINY_TYPES
    stream = Stream(
        tiny_dataset,
        trained.config.data,
        splits=["train"],
        cell_types=TINY_TYPES,
        global_batch=12,
        seed=trained.config.seed,
        training=True,
    )
    batches = [batch for batch, _ in zip(stream.read(), range(stream.batches_per_epoch), strict=False)]
    features = torch.cat([hand_features(batch.images) for batch in batches]).numpy()
    expected = GaussianNB().fit(features, torch.cat([batch.labels for batch in batches]).numpy())
    found = fitted_numbers(finished.run)
    np.testing.assert_allclose(found["means"], expected.theta_, rtol=1e-9)
    np.testing.assert_allclose(found["variances"], expected.var_, rtol=1e-9)
    np.testing.assert_allclose(found["log_priors"].exp(), expected.class_prior_, rtol=1e-9)


def test_its_run_is_like_any_other_and_tells_types_apart(finished: Finished) -> None:
    (record,) = read_records(finished.run)
    assert record["kind"] == "epoch"
    for name in ("train_loss", "train_accuracy", "validation_balanced_accuracy", "seconds", "images_per_second"):
        assert record[name] > 0
    assert finished.epochs == [True]
    scores = json.loads((finished.run / "evaluation/metrics.json").read_text())["scores"]
    assert scores["overall"]["balanced_accuracy"]["value"] > 0.6  # of three types
    assert "naive_bayes" in (finished.run / "report.html").read_text()


def test_a_finished_fit_is_scored_again_and_not_fitted_again(finished: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    shutil.rmtree(run / "evaluation")
    before = {path.name: path.stat().st_mtime_ns for path in [*(run / "checkpoints").iterdir(), run / "metrics.jsonl"]}
    config, epochs = replace(finished.config, run=str(run)), list[bool]()
    train(config, Topology(), epochs.append)
    after = {path.name: path.stat().st_mtime_ns for path in [*(run / "checkpoints").iterdir(), run / "metrics.jsonl"]}
    assert (after, epochs) == (before, [])
    again, first = (json.loads((each / "evaluation/metrics.json").read_text()) for each in (run, finished.run))
    assert again["scores"] == first["scores"]
    with pytest.raises(UserError, match="seed was 0, is now 1"):
        train(replace(config, seed=1), Topology())


def test_it_has_no_layers_to_compare_images_in(finished: Finished) -> None:
    with pytest.raises(UserError, match=r"naive_bayes has no layers .*: give a run of another model"):
        _ = load_classifier(finished.run).layers


def test_two_processes_fit_what_one_does(finished: Finished, tiny_dataset: Dataset, launch: Launch) -> None:
    arguments = (f"shards={tiny_dataset.root}", "run=run", *ARGUMENTS, "train.micro_batch=4")
    done = launch("train_classifier", *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.strip().splitlines()[-1]).parent
    alone = fitted_numbers(finished.run)
    for name, numbers in fitted_numbers(run).items():
        torch.testing.assert_close(numbers, alone[name], rtol=1e-9, atol=0)
    scores = [json.loads((each / "evaluation/metrics.json").read_text())["scores"] for each in (run, finished.run)]
    assert scores[0]["confusion"] == scores[1]["confusion"]


def test_evaluate_and_predict_take_its_run(
    finished: Finished, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    done = launch("evaluate", f"run={finished.run}", "split=validation")
    assert "used to train or choose" in done.stderr
    assert launch("evaluate", f"run={finished.run}").returncode == 0
    scored = pd.read_parquet(finished.run / "evaluation/metrics.parquet")
    raw = tiny_dataset.root.parent / "raw"
    assert launch("predict", f"run={finished.run}", f"images={raw}", "out=out").returncode == 0
    predicted = pd.read_csv(tmp_path / "out/predictions.csv").set_index("path")
    for row in scored.to_dict("records"):
        assert predicted.loc[str(raw / row["path"]), "type"] == row["predicted"]
