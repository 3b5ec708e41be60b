"""Scores: each measure against an independent computation, and intervals that may be believed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from data_pipeline.errors import UserError
from tests.evaluations import evaluation_of
from trainer.metrics.bootstrap import CALIBRATION_BINS, Estimate, Resamples, all_right_lower_bound
from trainer.metrics.classification import Scores, format_scores, score, scored_images
from trainer.metrics.evaluation import ScoredData, load_evaluations, predictions_frame, save_evaluation
from trainer.metrics.measures import measures
from trainer.metrics.records import from_json, to_json

TYPES = ("basophil", "eosinophil", "lymphocyte", "monocyte", "platelet")


def draw(n: int, seed: int = 0, skill: float = 1.5, types: int = len(TYPES)) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities [n, types] and labels [n] of a classifier of some skill."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(types, size=n)
    logits = generator.normal(size=(n, types))
    logits[np.arange(n), labels] += skill
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def one_hot(labels: NDArray[Any], types: int = len(TYPES)) -> NDArray[Any]:
    return np.eye(types)[labels]


def own_groups(n: int) -> list[str]:
    return [""] * n


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_every_measure_equals_scikit_learn() -> None:
    """A wrong formula would put wrong numbers into every report."""
    probabilities, labels = draw(600)
    predicted = probabilities.argmax(axis=1)
    scores = score(probabilities, labels, own_groups(600), TYPES, bootstrap_samples=0)
    expected = {
        "accuracy": sklearn.accuracy_score(labels, predicted),
        "balanced_accuracy": sklearn.balanced_accuracy_score(labels, predicted),
        "sensitivity": sklearn.recall_score(labels, predicted, average="macro"),
        "precision": sklearn.precision_score(labels, predicted, average="macro"),
        "f1": sklearn.f1_score(labels, predicted, average="macro"),
        "auroc": sklearn.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
    }
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value, abs=1e-6), name
    assert scores.confusion == sklearn.confusion_matrix(labels, predicted).tolist()
    for kind, cell_type in enumerate(TYPES):
        row, is_type, said = scores.per_type[cell_type], labels == kind, predicted == kind
        assert row.count == is_type.sum()
        per_type = {
            "sensitivity": sklearn.recall_score(is_type, said),
            "specificity": sklearn.recall_score(~is_type, ~said),
            "precision": sklearn.precision_score(is_type, said),
            "f1": sklearn.f1_score(is_type, said),
            "auroc": sklearn.roc_auc_score(is_type, probabilities[:, kind]),
            "accuracy": sklearn.accuracy_score(is_type, said),
        }
        for name, value in per_type.items():
            assert row[name].value == pytest.approx(value, abs=1e-6), (cell_type, name)
    specificities = [scores.per_type[cell_type]["specificity"].value for cell_type in TYPES]
    assert scores["specificity"].value == pytest.approx(np.mean(specificities), abs=1e-6)


def test_selective_prediction_by_hand() -> None:
    """Who lets the surest answers through must know how right those are."""
    probabilities = np.array([[0.95, 0.05], [0.1, 0.9], [0.8, 0.2], [0.2, 0.8], [0.6, 0.4]])
    labels = np.array([0, 1, 1, 1, 1])  # wrong: one of the two level at 0.8, and the least sure
    selective = score(probabilities, labels, own_groups(5), ("a", "b"), bootstrap_samples=0).selective
    # Risk at each image, the level ones together: 0, 0, 1/4, 1/4, 2/5.
    assert selective.risk_coverage_area.value == pytest.approx((1 / 4 + 1 / 4 + 2 / 5) / 5)
    curve = {round(row.coverage, 2): (row.accuracy.value, row.confidence) for row in selective.curve}
    assert curve[0.2] == pytest.approx((1, 0.95))
    assert curve[0.4] == pytest.approx((1, 0.9))
    assert curve[0.45] == curve[0.8] == pytest.approx((3 / 4, 0.8))
    assert curve[1.0] == pytest.approx((3 / 5, 0.6))
    assert {share: each.value for share, each in selective.accuracy_at_coverage.items()} == pytest.approx(
        {"80": 3 / 4, "90": 3 / 5, "95": 3 / 5}
    )
    assert selective.accuracy_at_coverage["80"].low is None


def test_calibration_error_by_hand() -> None:
    """An overconfident model must not pass as calibrated."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.62, 0.38], [0.0, 1.0]])
    labels = np.array([0, 1, 0, 1])
    scores = score(probabilities, labels, own_groups(4), ("a", "b"), bootstrap_samples=0)
    # Bins: two at 0.9 half right, one at 0.62 right, one at 1.0 right (in the last bin, which 0.9 is not in).
    assert scores["calibration_error"].value == pytest.approx((2 * 0.4 + 0.38 + 0.0) / 4, abs=1e-6)
    counts = [row.count for row in scores.reliability]
    assert len(counts) == CALIBRATION_BINS
    assert sum(counts) == 4
    assert counts[-1] == 1
    assert scores.reliability[13].accuracy == 0.5


def test_every_measure_of_weighted_groups_is_that_of_repeated_images() -> None:
    """A measure that reads images without their weights would have wrong intervals."""
    probabilities, labels = draw(60, seed=3)
    images = scored_images(probabilities, labels, own_groups(60), len(TYPES))
    drawn = np.random.default_rng(1).integers(0, 4, size=(60, 2))
    for column in range(2):
        rows = np.repeat(np.arange(60), drawn[:, column])
        repeated = scored_images(probabilities[rows], labels[rows], own_groups(len(rows)), len(TYPES))
        for name, measure in measures().items():
            weighted = measure.values(Resamples(images, drawn.astype(float)))[column]
            np.testing.assert_allclose(weighted, measure.values(repeated.once)[0], atol=1e-9, err_msg=name)


def test_intervals_equal_a_plain_bootstrap() -> None:
    """Resampling by weights must be what it stands for: groups drawn, their rows scored anew."""
    probabilities, labels = draw(240, seed=5)
    groups = [f"patient {i // 8}" for i in range(240)]
    scores = score(probabilities, labels, groups, TYPES, bootstrap_samples=70, seed=11)
    generator = np.random.default_rng(11)
    drawn = np.concatenate([generator.integers(30, size=(size, 30)) for size in [32, 32, 6]])
    rows_of = [np.arange(8 * group, 8 * group + 8) for group in range(30)]
    plain: dict[str, list[float]] = {"accuracy": [], "auroc": [], "balanced_accuracy": [], "precision": []}
    plain["negative_log_likelihood"] = []
    errors, areas, surest = [], [], []
    for chosen in drawn:
        rows = np.concatenate([rows_of[group] for group in chosen])
        truth, table = labels[rows], probabilities[rows]
        said = table.argmax(axis=1)
        plain["accuracy"].append(sklearn.accuracy_score(truth, said))
        plain["balanced_accuracy"].append(sklearn.balanced_accuracy_score(truth, said))
        plain["precision"].append(sklearn.precision_score(truth, said, average="macro", zero_division=0))
        plain["auroc"].append(sklearn.roc_auc_score(truth, table, multi_class="ovr"))
        again = score(table, truth, own_groups(len(rows)), TYPES, bootstrap_samples=0)
        plain["negative_log_likelihood"].append(again["negative_log_likelihood"].value)
        errors.append(again["calibration_error"].value)
        areas.append(again.selective.risk_coverage_area.value)
        surest.append(again.selective.accuracy_at_coverage["90"].value)
    for name, values in plain.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert scores[name].low == pytest.approx(low, abs=1e-6), name
        assert scores[name].high == pytest.approx(high, abs=1e-6), name
    for estimate, values in (
        (scores.selective.risk_coverage_area, areas),
        (scores.selective.accuracy_at_coverage["90"], surest),
    ):
        assert [estimate.low, estimate.high] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-9)
    centred = np.array(errors) - np.mean(errors) + scores["calibration_error"].value
    assert scores["calibration_error"].low == pytest.approx(max(0, np.percentile(centred, 2.5)), abs=1e-5)


def test_intervals_over_groups_are_wider_where_images_of_a_group_fail_together() -> None:
    """Ten pictures of one patient are not ten patients: an interval over images would promise too much."""
    generator = np.random.default_rng(0)
    labels = np.repeat(generator.integers(len(TYPES), size=60), 10)
    fails = np.repeat(generator.random(60) < 0.2, 10)
    probabilities = 0.8 * one_hot(np.where(fails, (labels + 1) % len(TYPES), labels)) + 0.04
    groups = [str(i // 10) for i in range(600)]
    over_groups = score(probabilities, labels, groups, TYPES)
    over_images = score(probabilities, labels, own_groups(600), TYPES)
    assert over_groups["accuracy"].value == over_images["accuracy"].value
    for name in ("accuracy", "balanced_accuracy", "f1", "auroc", "calibration_error"):
        assert width(over_groups[name]) > 2 * width(over_images[name]), name


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """A 95 % interval that holds the true accuracy in half of all cases would be no interval."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        chance = np.repeat(generator.beta(8, 2, size=50), 4)  # accuracy differs between groups, 0.8 on average
        labels = generator.integers(2, size=200)
        right = generator.random(200) < chance
        probabilities = 0.6 * one_hot(np.where(right, labels, 1 - labels), 2) + 0.2
        groups = [str(i // 4) for i in range(200)]
        estimate = score(probabilities, labels, groups, ("a", "b"), bootstrap_samples=200)["accuracy"]
        held += estimate.low <= 0.8 <= estimate.high
    assert held >= 52


def test_same_seed_same_scores_and_only_json() -> None:
    """A report made twice must say the same, and the scores must survive their file."""
    probabilities, labels = draw(150)
    groups = [str(i % 40) for i in range(150)]
    first = score(probabilities, labels, groups, TYPES, 100)
    assert first == score(probabilities, labels, groups, TYPES, 100)
    assert first == from_json(Scores, json.loads(json.dumps(to_json(first), allow_nan=False)))
    other = score(probabilities, labels, groups, TYPES, 100, seed=1)
    assert other["accuracy"].value == first["accuracy"].value
    assert other["accuracy"] != first["accuracy"]


def test_perfect_predictor_is_not_certain_for_ever() -> None:
    """Three right answers of three must not be reported as 100 % with an interval of no width."""
    labels = np.array([0] * 100 + [1] * 3)
    scores = score(one_hot(labels, 2), labels, own_groups(103), ("common", "rare"))
    for name in ("accuracy", "balanced_accuracy", "specificity", "precision", "f1", "auroc"):
        assert scores[name].value == 1.0, name
    assert scores["calibration_error"].value == pytest.approx(0, abs=1e-6)
    rare, common = (scores.per_type[cell_type]["sensitivity"] for cell_type in ("rare", "common"))
    assert rare.low == pytest.approx(0.025 ** (1 / 3), abs=1e-6)
    assert common.low == pytest.approx(0.025 ** (1 / 100), abs=1e-6)
    assert rare.high == common.high == 1.0
    # The mean cannot be worse than with all doubt put on the rare type.
    assert scores["balanced_accuracy"].low == pytest.approx((1 + rare.low) / 2, abs=0.01)
    assert scores["auroc"].low is None


@given(st.lists(st.integers(1, 500), min_size=1, max_size=6))
def test_bound_of_right_answers_is_reached_and_never_passed(groups: list[int]) -> None:
    """The lowest mean sensitivity that gives all right answers in one case of forty: no higher."""
    bound = all_right_lower_bound(np.array(groups))
    counts = np.array(groups, dtype=float)
    assert 0 < bound < 1
    # Any rates that reach the same likelihood have a mean at or above the bound.
    for shares in np.random.default_rng(0).dirichlet(np.ones(len(groups)), size=50):
        rates = np.exp(-shares * -math.log(0.025) / counts)
        assert rates.mean() >= bound - 1e-9
    assert all_right_lower_bound(counts[:1]) == pytest.approx(0.025 ** (1 / counts[0]))


def test_constant_predictor_is_seen_through_by_balanced_accuracy() -> None:
    """Where most cells are neutrophils, answering neutrophil always must not look like skill."""
    labels = np.array([0] * 87 + [1] * 8 + [2] * 5)
    probabilities = np.tile([0.8, 0.1, 0.1], (100, 1))
    scores = score(probabilities, labels, own_groups(100), ("neutrophil", "basophil", "monocyte"))
    assert scores["accuracy"].value == pytest.approx(0.87)
    assert scores["balanced_accuracy"].value == pytest.approx(1 / 3)
    assert scores["auroc"].value == pytest.approx(0.5)
    neutrophil, basophil = scores.per_type["neutrophil"], scores.per_type["basophil"]
    assert neutrophil["sensitivity"].value == 1.0
    assert neutrophil["specificity"].value == 0.0
    assert basophil["sensitivity"].value == 0.0
    assert basophil["sensitivity"].high == pytest.approx(1 - 0.025 ** (1 / 8))
    assert basophil["precision"].value == 0.0


def test_absent_types_are_null_and_left_out_of_the_means() -> None:
    """On a data set with two of five types, the missing three must not count as failures nor as successes."""
    probabilities, labels = draw(80, types=2)
    padded = np.concatenate([0.9 * probabilities, np.full((80, 3), 0.1 / 3)], axis=1)
    padded[0] = [0.1, 0.1, 0.6, 0.1, 0.1]  # an answer of a type that is not there is still a wrong answer
    scores = score(padded, labels, own_groups(80), TYPES)
    assert scores.absent == ["lymphocyte", "monocyte", "platelet"]
    nothing = Estimate(None)
    for cell_type in scores.absent:
        assert scores.per_type[cell_type].count == 0
        assert all(each == nothing for each in scores.per_type[cell_type].measures.values())
    said = padded.argmax(axis=1)
    recalls = [np.mean(said[labels == kind] == kind) for kind in range(2)]
    assert scores["balanced_accuracy"].value == pytest.approx(np.mean(recalls), abs=1e-6)
    assert sum(scores.confusion[labels[0]]) == (labels == labels[0]).sum()
    assert "left out of the means: lymphocyte, monocyte, platelet" in format_scores(scores)


def test_one_type_alone_has_no_specificity() -> None:
    """Nothing can be said about telling a type from others where there are no others."""
    probabilities, _ = draw(30)
    scores = score(probabilities, np.zeros(30, dtype=int), own_groups(30), TYPES)
    assert scores["specificity"].value is None
    assert scores["auroc"].value is None
    assert scores["sensitivity"].value == pytest.approx(scores["accuracy"].value)


def test_one_group_gives_no_interval() -> None:
    """All images of one patient say nothing about the next patient."""
    probabilities, labels = draw(50)
    scores = score(probabilities, labels, ["patient"] * 50, TYPES)
    assert scores.groups == 1
    assert all(each.value is not None and each.low is None for each in scores.overall.values())
    # A type that one of many groups holds has no interval of its own, though the whole has.
    groups = ["one" if label == 0 else str(i) for i, label in enumerate(labels)]
    scores = score(probabilities, labels, groups, TYPES)
    assert scores.per_type[TYPES[0]].groups == 1
    assert scores.per_type[TYPES[0]]["sensitivity"].low is None
    assert scores.per_type[TYPES[1]]["sensitivity"].low is not None
    assert scores["accuracy"].low is not None


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.full((3, 2), 0.5), [0, 1], "one label"),
        (np.full((2, 2), np.nan), [0, 1], "finite"),
        (np.array([[2.0, -1.0]]), [0], "not negative"),
        (np.full((2, 2), 0.5), [0, 2], "labels must lie"),
        (np.zeros((0, 2)), [], "no image"),
    ],
)
def test_arrays_that_are_no_predictions_are_refused(probabilities: Any, labels: Any, message: str) -> None:
    """Logits or NaN taken for probabilities would give scores that look like scores."""
    with pytest.raises(ValueError, match=message):
        score(probabilities, np.array(labels, dtype=int), own_groups(len(labels)), ("a", "b"))


def test_table_for_the_console_holds_the_numbers() -> None:
    """What is printed at the end of a run must be what was saved."""
    probabilities, labels = draw(90)
    scores = score(probabilities, labels, own_groups(90), TYPES, 100)
    text = format_scores(scores)
    for measure in measures().values():
        assert measure.format(scores[measure.name], brackets=True) in text
    assert all(cell_type in text for cell_type in TYPES)
    assert max(map(len, text.splitlines())) <= 110


def test_no_evaluation_overwrites_another(tmp_path: Path) -> None:
    """Scoring a second data set of the same name must not lose the first one's scores."""
    probabilities, labels = draw(20)
    names = ["id", "parent", "source", "path", "group", "domain"]
    samples = pd.DataFrame({name: [f"{name} {i}" for i in range(20)] for name in names})
    samples["cell_type"] = [TYPES[label] for label in labels]
    frame = predictions_frame(samples, probabilities, TYPES)

    def save(path: str, content: str, own: bool, normalizer: Any = None) -> Path:
        data = ScoredData(path, content, "test", ["giemsa"], 20)
        record = evaluation_of(data, probabilities, labels, own_groups(20), TYPES, 0, normalizer=normalizer)
        return save_evaluation(tmp_path, record, frame, own_test=own)

    own = save("/a/shards", "11" * 32, own=True)
    assert own.name == "metrics.json"
    first = save("/b/shards", "22" * 32, own=False)
    assert first.name == "shards-test-giemsa.json"
    second = save("/c/shards", "33" * 32, own=False)
    normalised = save("/b/shards", "22" * 32, own=False, normalizer={"run": "cycle"})
    grown = save("/a/shards", "44" * 32, own=True)
    paths = {own, first, second, normalised, grown}
    assert len(paths) == 5
    assert save("/b/shards", "22" * 32, own=False) == first  # the same data again is the same evaluation
    assert {path for path in own.parent.iterdir() if path.suffix == ".json"} == paths
    loaded = load_evaluations(tmp_path)
    assert loaded[0].is_own_test
    assert [evaluation.is_own_test for evaluation in loaded[1:]] == [False] * 4
    assert to_json(loaded[0].record) == json.loads(own.read_text())
    assert loaded[0].predictions is not None
    np.testing.assert_allclose(loaded[0].predictions["p:basophil"], probabilities[:, 0], atol=1e-6)
    assert (loaded[0].predictions["predicted"] == np.array(TYPES)[probabilities.argmax(axis=1)]).all()


def test_damaged_evaluation_is_named(tmp_path: Path) -> None:
    """One line must say which file is broken, not a traceback."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text('{"dataset": ')
    with pytest.raises(UserError, match=r"metrics\.json: not an evaluation"):
        load_evaluations(tmp_path)


def test_an_evaluation_of_another_version_is_refused_and_scored_anew(tmp_path: Path) -> None:
    """An older record read as a new one would show wrong numbers; one that blocks its place could not be renewed."""
    probabilities, labels = draw(20)
    data = ScoredData("/a/shards", "11" * 32, "test", ["giemsa"], 20)
    record = evaluation_of(data, probabilities, labels, own_groups(20), TYPES, 0)
    (tmp_path / "evaluation").mkdir()
    path = tmp_path / "evaluation" / "metrics.json"
    older = {name: each for name, each in to_json(record).items() if name != "format_version"}
    for content in (older, older | {"format_version": 1}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"written by an older version.*: run evaluate.py again") as caught:
            load_evaluations(tmp_path)
        assert "\n" not in str(caught.value)
    frame = pd.DataFrame({"id": ["a"]})
    assert save_evaluation(tmp_path, record, frame, own_test=True) == path
    assert load_evaluations(tmp_path)[0].record == record
    wrong = to_json(record)
    wrong["scores"]["overall"]["accuracy"]["value"] = "high"
    path.write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"scores\.overall\.accuracy\.value: .* valid number"):
        load_evaluations(tmp_path)
