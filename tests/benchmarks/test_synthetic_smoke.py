"""If these fail, an arm of the comparison is not what its name says, after hours of training."""

import json
from pathlib import Path

import pytest

from data_pipeline.catalog import Dataset
from launchers.train_classifier import main as train
from tests.benchmarks.generation_runs import CLASSIFIER
from tests.benchmarks.synthetic import ARMS, CONTROL, FROZEN, PRETRAINED, THINNED, compare
from tests.launchers.test_launchers import TINY
from trainer.experiments.results import Trial
from trainer.runs.composition import read_config
from trainer.tasks.classification.config import ClassifierRunConfig


@pytest.mark.parametrize("start", [CLASSIFIER, PRETRAINED])
def test_every_arm_but_none_and_added_differs_from_the_control_in_one_thing(start: tuple[str, ...]) -> None:
    control = read_config(ClassifierRunConfig, "train_classifier", [*start, *ARMS[CONTROL][1]])
    for arm, (dataset, options) in ARMS.items():
        config = read_config(ClassifierRunConfig, "train_classifier", [*start, *options])
        assert (config == control) == (len(options) == 1)
        assert (dataset == "thinned") == (arm in ("none", CONTROL))
        if arm not in ("none", "added"):
            assert config.data == control.data
            changed = (config.model != control.model) + (config.train.synthetic != control.train.synthetic)
            assert changed == len(options) - 1


def test_the_features_of_auto_are_of_a_frozen_network() -> None:
    config = read_config(ClassifierRunConfig, "train_classifier", [*FROZEN, "model.weights=x.safetensors"])
    assert config.model.architecture == "frozen"


def test_arms_are_compared_with_the_control_on_the_same_images(tiny_dataset: Dataset, tmp_path: Path) -> None:
    trials = {}
    for arm in (CONTROL, "none"):
        run = tmp_path / arm
        train([f"shards={tiny_dataset.address}", f"run={run}", *TINY, *ARMS[arm][1]])
        trials[arm] = [Trial(arm, arm, arm, None, 0, {}, "", run, None, "finished", None, None)]
    found = compare(trials)
    assert "difference" not in found[CONTROL]
    difference = found["none"]["difference"]
    assert difference["seeds"] == [0]
    for name in THINNED:
        scores = [found[arm]["scores"]["sensitivity"][name]["value"] for arm in ("none", CONTROL)]
        assert difference["sensitivity"][name]["value"] == pytest.approx(scores[0] - scores[1])
    json.dumps(found)
