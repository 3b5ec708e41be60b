"""If these fail, an adaptation loses what the classifier knew, claims what it did not measure, or leaves half a run."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.stream.stream import Topology
from launchers.console import read_config
from launchers.export import main as export
from launchers.predict import main as predict
from models.classifiers.build import build_classifier
from tests.benchmarks import adaptation as benchmark
from tests.data_pipeline.test_fields import write_field
from tests.trainer.test_frozen import config_of
from trainer.learners.choices import VIEWS
from trainer.metrics.bootstrap import Estimate
from trainer.runs import shipped
from trainer.runs.provenance import learned_by_run
from trainer.runs.training import train
from trainer.tasks.classification.adaptation import adapt as adapting
from trainer.tasks.classification.adaptation import methods
from trainer.tasks.classification.adaptation.adapt import adapt
from trainer.tasks.classification.adaptation.choice import Trial, best_method, folds, possible_methods, trial
from trainer.tasks.classification.adaptation.config import AdaptConfig
from trainer.tasks.classification.adaptation.evidence import best_by_evidence
from trainer.tasks.classification.adaptation.laboratory import Images, Numbers
from trainer.tasks.classification.adaptation.methods import HeadImages, mixed_statistics
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.reports.adaptation_record import Evidence, read_adaptation
from trainer.tasks.classification.training.heads import fit_linear
from trainer.tasks.classification.uncertainty.calibration import load_calibration
from trainer.tasks.classification.uncertainty.reference import load_reference
from trainer.tasks.classification.uncertainty.training_distance import TrainingDistance

TOPOLOGY = Topology()


@pytest.fixture(scope="module")
def trained(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three types that has seen both stains of phantoms."""
    run = tmp_path_factory.mktemp("adapt") / "trained"
    arguments = [
        f"shards={tiny_dataset.root}",
        f"run={run}",
        "model=senet_tiny_ge",
        "data.image_size=32",
        "train.epochs=5",
        "train.global_batch=12",
    ]
    return train(read_config(ClassifierRunConfig, "train_classifier", arguments), TOPOLOGY)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled folders of a stain, six cells of four types; the classifier does not know monocytes."""
    types = ("basophil", "eosinophil", "lymphocyte", "monocyte")
    folder = tmp_path_factory.mktemp("cells") / "raw"
    render_phantoms(folder, 6, stains=("violet",), size=32, seed=9, cell_types=types, progress=False)
    return folder / "violet"


def adapted(trained: Path, out: Path, **settings: Any) -> Path:
    return adapt(AdaptConfig(run=str(trained), out=str(out), steps=2, **settings), TOPOLOGY)


def test_labelled_cells_make_a_run_like_any_other(trained: Path, cells: Path, tmp_path: Path) -> None:
    """It knows the new type, predicts raw images, says what it was adapted from, and remembers what it has seen."""
    run = adapted(trained, tmp_path / "new", labelled=str(cells))
    found = load_classifier(run)
    assert found.cell_types == ("basophil", "eosinophil", "lymphocyte", "monocyte")
    calibrations = [load_calibration(run, found.checkpoint.digest, views) for views in VIEWS]
    assert [each.images for each in calibrations] == [24] * 4  # each labelled cell was held out once
    record = read_adaptation(run)
    assert record is not None
    assert [each.method for each in record.methods] == ["as_is", "head", "all"]
    assert "so its score is a little too high" in record.advice[2]
    assert "label 10 more" in record.advice[-1]  # six are few
    assert f"adapted from | {trained}" in (run / "model_card.md").read_text()
    predict([f"run={run}", f"images={cells}", f"out={tmp_path / 'answers'}", "views=2"])
    answers = pd.read_csv(tmp_path / "answers" / "predictions.csv")
    assert len(answers) == 24
    # Sets of types and unfamiliarity are of these cells: they are familiar, and nine of ten sets hold the type.
    assert (answers["unfamiliarity"] <= 1).mean() > 0.9
    reference = load_reference(run, found.checkpoint.digest)
    assert reference is not None
    assert len(reference.ids) == 24
    seen = set(learned_by_run(run).table["id"])
    labelled = set(Dataset.open(run / "laboratory").samples()["id"])
    assert len(labelled) == 24
    assert labelled | set(LearnedImages.load(trained / "learned.parquet").table["id"]) == seen


def test_a_head_learns_a_type_that_the_run_did_not_know(trained: Path, cells: Path, tmp_path: Path) -> None:
    """As is, the new type is never answered."""
    scores = {}
    for method in ("as_is", "head"):
        run = adapted(trained, tmp_path / method, labelled=str(cells), method=method)
        record = read_adaptation(run)
        assert record is not None
        assert record.method == method
        scores = {each.method: each.sensitivity["monocyte"].value or 0.0 for each in record.methods}
    assert scores["as_is"] == 0
    assert scores["head"] > 0


def test_without_labels_it_is_said_what_the_choice_rests_on(trained: Path, cells: Path, tmp_path: Path) -> None:
    run = adapted(trained, tmp_path / "new", images=str(cells))
    record = read_adaptation(run)
    assert record is not None
    assert record.methods == []
    assert [each.method for each in record.evidence] == ["as_is", "statistics", "self_training"]
    assert record.evidence[0].gain.value == 0
    assert record.evidence[0].unchanged == 1
    assert record.method != "self_training"  # 24 images are too few
    assert "says little of how right they are" in record.advice[2]
    assert record.home is not None  # the data set of the run is at hand
    new, old = load_classifier(run), load_classifier(trained)
    assert new.domains == ("laboratory",)
    assert new.calibration.temperature == old.calibration.temperature
    reference = load_reference(run, new.checkpoint.digest)
    before = load_reference(trained, old.checkpoint.digest)
    assert reference is not None
    assert before is not None
    assert set(reference.ids) == set(before.ids)  # nothing labelled is held out: the run's own validation images


@pytest.mark.parametrize("method", ["statistics", "self_training"])
def test_unlabelled_methods_change_what_they_say(
    trained: Path, cells: Path, tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics leave all weights, self-training changes the last layer alone."""
    monkeypatch.setattr(methods, "CONFIDENT", 0.3)
    run = adapted(trained, tmp_path / "new", images=str(cells), method=method)
    old, new = (load_classifier(folder).network for folder in (trained, run))
    statistics = [torch.equal(a, b) for a, b in zip(old.buffers(), new.buffers(), strict=True)]
    weights = [torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)]
    assert weights.count(False) == (0 if method == "statistics" else 2)
    assert all(statistics) == (method == "self_training")


def test_an_adaptation_that_fails_leaves_nothing_and_the_same_command_begins_again(
    trained: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new"
    (tmp_path / ".new.writing" / "new").mkdir(parents=True)  # of a process that was killed

    def fail(*_: Any) -> None:
        raise RuntimeError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(adapting, "write_adapted_run", fail)
        with pytest.raises(RuntimeError, match="cut off"):
            adapted(trained, out, images=str(cells))
    assert list(tmp_path.iterdir()) == []
    adapted(trained, out, images=str(cells))
    before = (out / "config.yaml").stat().st_mtime_ns
    adapted(trained, out, images=str(cells))  # finished: a no-op
    assert (out / "config.yaml").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="not of this command"):
        adapted(trained, out, images=str(cells), seed=1)


def test_what_cannot_be_is_refused_in_one_line(trained: Path, cells: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs labelled cells"):
        adapted(trained, tmp_path / "new", images=str(cells), method="head")
    with pytest.raises(UserError, match="needs unlabelled images"):
        adapted(trained, tmp_path / "new", labelled=str(cells), method="statistics")
    wrong = tmp_path / "labelled" / "martian cell"
    wrong.mkdir(parents=True)
    shutil.copy(next(cells.rglob("*.png")), wrong)
    with pytest.raises(UserError, match="unknown label 'martian cell'"):
        adapted(trained, tmp_path / "new", labelled=str(wrong.parent))
    first = adapted(trained, tmp_path / "first", labelled=str(cells), method="head")
    with pytest.raises(UserError, match="24 of the 24 labelled cells"):
        adapted(first, tmp_path / "new", labelled=str(cells))
    assert not (tmp_path / "new").exists()


def test_a_data_set_is_adapted_to_without_its_test_images(trained: Path, two_stains: Dataset, tmp_path: Path) -> None:
    """Its test split then scores the adapted run."""
    run = adapted(trained, tmp_path / "new", shards=str(two_stains.root), domain="violet", method="head")
    used = set(LearnedImages.load(run / "learned.parquet").only_through("").table["id"])
    rows = two_stains.samples(domains=["violet"])
    assert used == set(rows[rows["split"] == "train"]["id"])


def test_cells_of_one_patient_are_not_learned_from_and_scored(tiny_dataset: Dataset) -> None:
    rows = tiny_dataset.samples()
    labels = rows["cell_type"].astype("category").cat.codes.to_numpy(np.int64)
    images = Images(tiny_dataset, None, tuple(rows["id"]), tuple(rows["group"]), labels, TOPOLOGY)  # type: ignore[arg-type]
    parts = list(folds(images, 0))
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(len(rows)))
    for rest, held in parts:
        assert not {images.groups[row] for row in rest} & {images.groups[row] for row in held}
    assert list(folds(dataclasses.replace(images, groups=("one",) * len(rows)), 0)) == []


def test_a_head_is_shrunk_towards_the_runs_own() -> None:
    """With a large penalty it is the run's own, in the features' own units."""
    draw = np.random.default_rng(0)
    features, labels = (100 * draw.normal(size=(30, 4)) + 7).astype(np.float32), np.arange(30) % 3
    own = torch.nn.Linear(4, 3)
    shrunk = fit_linear(features, labels, 3, 1e6, towards=own)
    asked = torch.from_numpy(features)
    shift = (shrunk(asked) - own(asked)).detach()
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-2, rtol=0)  # the bias is not penalised
    free, alone = (fit_linear(features, labels, 3, 1e-6, towards=layer)(asked).softmax(1) for layer in (own, None))
    torch.testing.assert_close(free, alone, atol=0.01, rtol=0)


def test_statistics_do_not_follow_the_mix_of_types(trained: Path, tiny_dataset: Dataset) -> None:
    """A laboratory with six times as many cells of one type gives nearly the statistics of an even mix."""
    classifier, rows = load_classifier(trained), tiny_dataset.samples()
    labels: Numbers = rows["cell_type"].astype("category").cat.codes.to_numpy(np.int64)
    even = Images(tiny_dataset, classifier.config.data, tuple(rows["id"]), tuple(rows["group"]), labels, TOPOLOGY)
    few = np.concatenate([np.flatnonzero(labels == label)[:6] for label in (1, 2)])
    skewed = even.chosen(np.concatenate([np.flatnonzero(labels == 0), few]))

    def means(images: Images, answers: Any) -> torch.Tensor:
        mixed = mixed_statistics(classifier.network, images, answers, seed=0)
        return torch.cat([buffer for name, buffer in mixed.named_buffers() if name.endswith("running_mean")])

    target = means(even, even.labels)
    balanced, plain = means(skewed, skewed.labels), means(skewed, np.zeros(len(skewed), np.int64))
    assert (balanced - target).norm() < (plain - target).norm()


@pytest.mark.parametrize("network", [{"model": "senet_tiny_ge", "model.norm": "group"}, {"model.norm": "frozen"}])
def test_statistics_are_left_to_networks_that_follow_them(trained: Path, network: dict[str, str]) -> None:
    """Refused where asked for, left out where not."""
    config = load_classifier(trained).config
    model = dataclasses.replace(config.model, norm=network["model.norm"])  # type: ignore[arg-type]
    other = dataclasses.replace(load_classifier(trained), network=build_classifier(model, 3, 32))
    assert possible_methods(other, "auto", 0, 5) == ["as_is", "self_training"]
    with pytest.raises(UserError, match=r"method=statistics: .* has no batch norms that follow"):
        possible_methods(other, "statistics", 0, 5)
    assert possible_methods(load_classifier(trained), "statistics", 0, 5) == ["as_is", "statistics"]


def test_a_frozen_network_gets_a_new_head_only(trained: Path, cells: Path, tmp_path: Path) -> None:
    frozen = config_of(load_classifier(trained).config.open_dataset(), tmp_path)
    run = train(frozen, TOPOLOGY)
    with pytest.raises(UserError, match=r"method=all: the features of .* are frozen: take method=head"):
        adapted(run, tmp_path / "new", labelled=str(cells), method="all")
    new = load_classifier(adapted(run, tmp_path / "new", labelled=str(cells), method="head")).network
    old = load_classifier(run).network
    assert all(torch.equal(a, b) for a, b in zip(old.backbone.parameters(), new.backbone.parameters(), strict=True))  # type: ignore[union-attr]
    assert new.head.out_features == 4  # type: ignore[union-attr]
    nearest = train(
        dataclasses.replace(
            frozen, run=str(tmp_path / "nearest"), model=dataclasses.replace(frozen.model, head="nearest")
        ),
        TOPOLOGY,
    )
    with pytest.raises(UserError, match="last layer is linear"):
        adapted(nearest, tmp_path / "other", labelled=str(cells))


def test_the_shipped_classifier_is_adapted_like_a_run(
    trained: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes without the data set that it was trained on."""
    export([f"run={trained}", "format=safetensors", f"out={tmp_path / 'shipped'}"])
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "shipped")
    run = adapt(AdaptConfig(run="shipped", out=str(tmp_path / "new"), labelled=str(cells), method="head"), TOPOLOGY)
    record = read_adaptation(run)
    assert record is not None
    assert record.home is None
    assert len(learned_by_run(run)) == len(learned_by_run(trained)) + 24
    export([f"run={run}", "format=safetensors", f"out={tmp_path / 'compact'}"])
    card = (tmp_path / "compact" / "model_card.md").read_text()
    assert str(tmp_path) not in card
    assert "python launchers/adapt.py run=shipped" in card


def test_cells_of_annotated_fields_are_adapted_to(trained: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("lymphocyte", "basophil") * 3):
        write_field(tmp_path / "fields", f"f{number}", number, (name, 20, 20, 60, 60), ("RBC", 60, 60, 80, 80))
    run = adapted(trained, tmp_path / "new", labelled=str(tmp_path / "fields"), method="head")
    record = read_adaptation(run)
    assert record is not None
    assert (record.labelled["lymphocyte"], record.labelled["basophil"], record.labelled["eosinophil"]) == (3, 3, 0)


def test_the_benchmark_scores_what_was_not_taken(
    trained: Path, two_stains: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (f"run={trained}", f"shards={two_stains.root}", "domain=violet", f"out={tmp_path / 'scores.json'}")
    sizes = ("draws=1", "cells=3", "unlabelled=10", "steps=1")
    monkeypatch.setattr(sys, "argv", ["adaptation", *arguments, *sizes])
    benchmark.main()
    (draw,) = json.loads((tmp_path / "scores.json").read_text())["draws"]
    assert draw["labelled"] == 9
    assert draw["unlabelled"] == 10
    assert 0 < draw["scored"] < len(two_stains.samples(domains=["violet"])) - 10
    assert len(draw["arms"]) == 7
    assert draw["arms"]["as is"]["8"]["gain"] == [0, 0, 0]


def trial_of(right: list[bool], labels: Numbers, rows: Numbers | None = None) -> Trial:
    """Answers of one view that are right where it is said."""
    rows = np.arange(len(labels)) if rows is None else rows
    answers = np.where(right, labels[rows], (labels[rows] + 1) % 3)
    logits = torch.full((len(rows), 1, 3), -9.0)
    logits[np.arange(len(rows)), 0, answers] = 0.0
    images = Images(None, None, ("",) * len(labels), tuple(map(str, range(len(labels)))), labels, TOPOLOGY)  # type: ignore[arg-type]
    return trial(logits.log_softmax(dim=2), images, rows, ("basophil", "eosinophil", "lymphocyte"))


def test_few_cells_do_not_overrule_a_new_last_layer() -> None:
    """It is taken unless another is better on the same cells beyond chance; repeats of a cell are no new cells."""
    labels: Numbers = np.arange(15) % 3
    every = [True] * 15
    one_wrong = [False, *every[1:]]
    assert best_method({"as_is": trial_of(every, labels), "head": trial_of(one_wrong, labels)}, labels) == "head"
    half_wrong = [False] * 8 + every[8:]
    assert best_method({"as_is": trial_of(every, labels), "head": trial_of(half_wrong, labels)}, labels) == "as_is"
    assert best_method({"head": trial_of(half_wrong, labels), "all": trial_of(every, labels)}, labels) == "all"
    # One cell wrong in each of three repeats is one cell.
    rows = np.tile(np.arange(15), 3)
    repeated = trial_of(one_wrong * 3, labels, rows)
    assert repeated.right.tolist() == [0.0] + [1.0] * 14
    assert len(repeated.once()[1]) == 15


def test_a_run_without_its_data_set_still_knows_the_means_of_its_types() -> None:
    """So the shipped classifier forgets less."""
    draw = torch.Generator().manual_seed(0)
    means = torch.tensor([[9.0, 0, 0, 1], [0, 30, 0, 2], [0, 0, 3, 3]])
    labels = torch.arange(300) % 3
    features = means[labels] + torch.randn((300, 4), generator=draw)
    distance = TrainingDistance.fit(features, labels, features[:60], [4])
    torch.testing.assert_close(distance.type_means(), means, atol=0.3, rtol=0)


def test_self_training_is_not_taken_on_thin_evidence() -> None:
    """Few images, one type answered for all of a skewed mix, changed answers, or no training images beside them."""
    none, many = Estimate(0.0), {"basophil": 50, "eosinophil": 3, "lymphocyte": 3}

    def chosen(
        answers: dict[str, int], unchanged: float = 0.9, home: bool = True, gain: Estimate = none, less: Estimate = none
    ) -> str:
        rows = [
            Evidence("as_is", 0.8, 0.9, none, 1.0, answers),
            Evidence("statistics", 0.8, 0.9, gain, 0.9, answers),
            Evidence("self_training", 0.9, 0.9, less, unchanged, answers),
        ]
        return best_by_evidence(rows, home)

    assert chosen(many) == "self_training"
    assert chosen({name: count // 2 for name, count in many.items()}) == "as_is"
    assert chosen({"basophil": 55, "eosinophil": 1, "lymphocyte": 0}) == "as_is"
    assert chosen(many, unchanged=0.5) == "as_is"
    assert chosen(many, less=Estimate(-0.04, -0.06, -0.02)) == "as_is"
    assert chosen(many, home=False) == "as_is"
    assert chosen(many, home=False, gain=Estimate(0.02, 0.01, 0.03)) == "statistics"


def test_a_type_without_labelled_cells_can_still_be_answered() -> None:
    """Not only where the training images of the run are at hand."""
    draw = np.random.default_rng(0)
    centres = np.eye(3, 6) * 4
    labels: Numbers = np.arange(60) % 2  # none of the third type
    features = (centres[labels] + draw.normal(size=(60, 6))).astype(np.float32)
    before = torch.nn.Linear(6, 3)
    before.load_state_dict({"weight": torch.tensor(centres), "bias": torch.zeros(3)})
    images = HeadImages(features[:, None], labels, features[:0], labels[:0])
    head = images.fit(np.arange(60), before)
    third = torch.tensor(centres[2] + draw.normal(size=(40, 6))).float()
    assert (head(third).argmax(dim=1) == 2).float().mean() > 0.9
    assert (head(torch.from_numpy(features)).argmax(dim=1).numpy() == labels).mean() > 0.9
