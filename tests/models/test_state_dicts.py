"""If these fail, networks of runs that were trained before can no longer be loaded."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from models.conditional import networks as conditional
from models.conditional.config import ClassifierConfig as TypeClassifierConfig
from models.conditional.config import CriticConfig, GeneratorConfig
from models.few_shot import config as few_shot_config
from models.few_shot import networks as few_shot

CONFIGS = Path(__file__).parents[2] / "configs/model"


def classifier(name: str) -> nn.Module:
    config = ClassifierConfig(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    return build_classifier(config, 12, image_size=96)


# The digest of the names and shapes of each network's weights.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "senet154_ge": (lambda: classifier("senet154_ge"), "128daa98c497"),
    "senet_small_ge": (lambda: classifier("senet_small_ge"), "ef87126c90d6"),
    "sequential_cnn": (lambda: classifier("sequential_cnn"), "9982b298c302"),
    "naive_bayes": (lambda: classifier("naive_bayes"), "01d31abcdb01"),
    "resnet50": (lambda: classifier("resnet50"), "0db6861dd09f"),
    "conditional generator": (lambda: conditional.build_generator(GeneratorConfig(), 128, 8), "878474741cd0"),
    "conditional critic": (
        lambda: conditional.build_critic(CriticConfig(norm="batch"), 128, shown_classes=8),
        "2e888d3f0ff4",
    ),
    "conditional classifier": (lambda: conditional.build_classifier(TypeClassifierConfig(), 128, 8), "aeb61237d3e1"),
    "few-shot generator": (lambda: few_shot.Generator(few_shot_config.GeneratorConfig(), 256, 128), "2fc0f74adb09"),
    "few-shot encoder": (lambda: few_shot.Encoder(few_shot_config.EncoderConfig(), 128), "6ce2d7aba051"),
    "few-shot discriminator": (
        lambda: few_shot.Discriminator(few_shot_config.DiscriminatorConfig(), 128),
        "1bf996506859",
    ),
    "feature decoder": (lambda: few_shot.FeatureDecoder(256, 32), "4054425b345a"),
    "miner": (lambda: few_shot.Miner(128), "e762c7fcd5ca"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_of_weights_stay(name: str) -> None:
    build, digest = NETWORKS[name]
    with torch.device("meta"):
        weights = build().state_dict()
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in weights.items())
    assert hashlib.sha256(lines.encode()).hexdigest()[:12] == digest
