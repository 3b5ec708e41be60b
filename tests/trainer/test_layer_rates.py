"""If these fail, a pretrained network's early layers are overwritten, or its last layer hardly learns."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import MicroBatch
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from tests.trainer.test_network_choices import SENET
from trainer.learners.layers import layer_depths
from trainer.learners.learner import Learner, Setting
from trainer.learners.optimizer import group_rates
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.tasks.classification.algorithms.cross_entropy import CrossEntropy
from trainer.tasks.classification.config import ClassifierFitConfig, ClassifierRunConfig

TIMM = ClassifierConfig(architecture="timm", timm_name="test_efficientnet", dropout=0.0)
VIT = ClassifierConfig(architecture="timm", timm_name="test_vit", dropout=0.0)
PLAIN = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.0, warmup=0.0, schedule="constant")


def depths_by_name(network: nn.Module) -> dict[str, int]:
    depths = layer_depths(network)
    return {name: depths[weight] for name, weight in network.named_parameters()}


def train(config: ClassifierConfig, optimizer: OptimizerConfig, *, steps: int = 1, frozen_epochs: int = 0) -> Learner:
    """A few steps of three epochs of one step each."""
    torch.manual_seed(0)
    network = build_classifier(config, 3, 32)
    run = ClassifierRunConfig(optimizer=optimizer, train=ClassifierFitConfig(epochs=3, frozen_epochs=frozen_epochs))
    algorithm = CrossEntropy(network, run, Setting("fp32", 3, global_batch=6))
    for step in range(steps):
        torch.manual_seed(step)
        rows = np.arange(6)
        part = MicroBatch(torch.rand(6, 3, 32, 32) * 2 - 1, torch.arange(6) % 3, rows, rows, step, 1)
        algorithm.step({"train": iter([[part]])}, detailed=False)
    learner: Learner = algorithm.learners["classifier"]
    return learner


@pytest.mark.parametrize("config", [SENET, TIMM, VIT], ids=["senet", "timm", "transformer"])
def test_each_stage_moves_by_its_own_rate(config: ClassifierConfig) -> None:
    """One step of plain descent: the weights' changes are those of one rate, times the decay of their depth."""
    one = train(config, PLAIN).module.state_dict()
    layered = train(config, dataclasses.replace(PLAIN, layer_decay=0.5))
    torch.manual_seed(0)
    start = build_classifier(config, 3, 32)
    depths = depths_by_name(start)
    assert sorted(set(depths.values())) == list(range(max(depths.values()) + 1))
    for name, weight in layered.module.named_parameters():
        change, whole = weight - start.get_parameter(name), one[name] - start.get_parameter(name)
        torch.testing.assert_close(change, whole * 0.5 ** depths[name], rtol=1e-3, atol=1e-6)


def test_stages_are_in_the_order_of_the_images_way() -> None:
    """New layers on top of pretrained ones learn with the whole rate: attention, and a last layer of our types."""
    senet, timm = depths_by_name(build_classifier(SENET, 3)), depths_by_name(build_classifier(TIMM, 3))
    assert [senet[f"{name}.weight"] for name in ("layer0.conv1", "layer1.0.conv1", "layer2.1.bn2")] == [3, 2, 1]
    assert {senet[name] for name in senet if name.startswith(("attention", "last_linear"))} == {0}
    last = {name for name, depth in timm.items() if depth == 0}
    assert last == {"network.classifier.weight", "network.classifier.bias"}
    assert timm["network.conv_stem.weight"] == max(timm.values())


def test_only_the_last_layer_learns_in_frozen_epochs() -> None:
    torch.manual_seed(0)
    start = build_classifier(TIMM, 3, 32).state_dict()
    optimizer = OptimizerConfig(warmup=0.0, schedule="constant")  # AdamW: weight decay must rest, too

    def changed(steps: int) -> set[str]:
        state = train(TIMM, optimizer, steps=steps, frozen_epochs=2).module.state_dict()
        return {name for name, value in state.items() if not torch.equal(value, start[name])}

    weights = {name for name, _ in build_classifier(TIMM, 3).named_parameters()}
    frozen = changed(2)
    assert frozen & weights == {"network.classifier.weight", "network.classifier.bias"}
    assert "network.bn1.running_mean" in frozen
    assert weights <= changed(3)


def test_a_network_whose_layers_have_no_order_is_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(UserError, match=r"^layer_decay below 1 and frozen_epochs need a network whose layers"):
        Learner("critic", network, OptimizerConfig(layer_decay=0.9), Setting("fp32", 1, global_batch=1))


def test_every_group_follows_the_schedule() -> None:
    config = OptimizerConfig(learning_rate=1.0, layer_decay=0.5, warmup=0.25)
    assert group_rates(config, [0, 1, 3], 8, 8) == pytest.approx([0, 0, 0])
    assert group_rates(config, [0, 1, 3], 2, 8, frozen_steps=2) == pytest.approx([1, 0.5, 0.125])
    assert group_rates(config, [0, 1, 3], 1, 8, frozen_steps=2) == pytest.approx([2 / 3, 0, 0])
