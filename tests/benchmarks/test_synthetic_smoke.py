"""If these fail, an arm of the comparison is not what its name says, after hours of training."""

import pytest

from tests.benchmarks.generation import CLASSIFIER
from tests.benchmarks.synthetic import ARMS, CONTROL, FROZEN, PRETRAINED
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
