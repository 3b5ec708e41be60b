"""The rivals of figure 52: if these fail, what a score is compared with is not what its name says."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from skimage.color import rgb2lab
from skimage.feature import graycomatrix, graycoprops
from torch import Tensor, nn
from torch.nn import functional

from models.classifiers.architectures.sequential import SequentialCNN
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from models.classifiers.hand_features import FEATURES, hand_features
from models.errors import ModelError
from models.stain.cielab import rgb_to_lab

CONFIGS = Path(__file__).parents[2] / "configs/model"
# Parameters with ImageNet's 1,000 classes, as torchvision, Keras (Xception) and timm (SE-ResNeXt) publish them;
# Inception v3 is torchvision's 27,161,264 without the 3,326,696 of its auxiliary head.
PUBLISHED_SIZES = {
    "vgg19": 143_678_248,
    "resnet50": 25_557_032,
    "inception_v3": 23_834_568,
    "xception": 22_855_952,
    "efficientnet": 5_288_548,
    "resnext101": 88_791_336,
    "se_resnext50": 27_559_896,
}
MICRO = ClassifierConfig(
    name="micro", architecture="sequential", timm_name="", layers=(1, 2), widths=(4, 8), dropout=0.5
)
PURPLE, PINK = (90, 50, 140), (235, 220, 228)


def config_of(name: str) -> ClassifierConfig:
    return ClassifierConfig(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_a_rival_is_of_its_published_size_and_takes_small_images(name: str) -> None:
    with torch.device("meta"):
        network = build_classifier(config_of(name), 1000)
        assert network(torch.empty(2, 3, 64, 64)).shape == (2, 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED_SIZES[name]


def test_images_that_are_too_small_for_a_network_are_enlarged_for_it() -> None:
    small = ClassifierConfig(architecture="timm", timm_name="resnet18", least_size=48)
    torch.manual_seed(0)
    network = build_classifier(small, 5, 32).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    enlarged = functional.interpolate(images, (48, 48), mode="bilinear")
    with torch.inference_mode():
        torch.testing.assert_close(network(images), network(enlarged))


@pytest.mark.parametrize(
    ("changes", "image_size", "said"),
    [
        ({"architecture": "timm", "timm_name": "inception_v3"}, 64, "75 pixels and more, not of 64: set data.image_si"),
        ({}, 3, "4 pixels and more, not of 3"),
        ({"timm_name": "", "least_size": 75}, 64, "model.least_size=75"),
        ({"widths": (4,)}, 32, "model.widths=[4]"),
        ({"architecture": "naive_bayes", "timm_name": "resnet50"}, 32, "leave model.timm_name empty"),
        ({"architecture": "naive_bayes", "weights": "a.pt"}, 32, "model.weights null"),
    ],
)
def test_what_cannot_be_built_is_one_line(changes: dict[str, Any], image_size: int, said: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=r"^[^\n]+$") as raised:
        build_classifier(dataclasses.replace(MICRO, **changes), 5, image_size)
    assert said in str(raised.value)


def test_the_sequential_cnn_is_a_plain_chain() -> None:
    """A shortcut or an attention in it would make it another rival; other image sizes are the same network's."""
    torch.manual_seed(0)
    network = build_classifier(MICRO, 5, 16)
    assert isinstance(network, SequentialCNN)
    convolution = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    chain = [type(module) for module in network.stages.modules() if not isinstance(module, nn.Sequential)]
    assert chain == [*convolution, nn.MaxPool2d, *convolution, *convolution, nn.MaxPool2d]
    network.eval()
    for size in (4, 16, 50):
        images = torch.rand(3, 3, size, size) * 2 - 1
        maps = network.forward_features(images)
        features = network.forward_head(maps, pre_logits=True)
        assert maps.shape == (3, 8, size // 4, size // 4)
        torch.testing.assert_close(network.last_linear(features), network(images))
        assert not torch.equal(network(images)[0], network(images)[1])
    assert [network.get_submodule(stage["module"])[-1].__class__ for stage in network.feature_info] == [
        nn.MaxPool2d
    ] * 2
    network(images).square().mean().backward()
    assert all(value.grad is not None for value in network.parameters())


def circle(side: int, radius: float, row: float = 0.5, column: float = 0.5, stretch: float = 1.0) -> Tensor:
    """Where a disc is, an ellipse with `stretch`: bool [side, side], all lengths in shares of the side."""
    places = (torch.arange(side) + 0.5) / side
    return ((places[:, None] - row) / stretch) ** 2 + (places - column) ** 2 <= radius**2


def picture(nucleus: Tensor) -> Tensor:
    """A purple nucleus on pink, float32 [1, 3, side, side] in [-1, 1]."""
    colours = torch.tensor([PINK, PURPLE])[nucleus.long()]
    return colours.permute(2, 0, 1)[None] / 127.5 - 1


def measured(images: Tensor) -> dict[str, float]:
    return dict(zip(FEATURES, hand_features(images)[0].tolist(), strict=True))


def test_features_of_a_disc_are_those_of_a_disc() -> None:
    found = measured(picture(circle(96, 0.25)))
    assert found["nucleus_area"] == pytest.approx(math.pi * 0.25**2, rel=0.02)
    assert found["nucleus_circularity"] == pytest.approx(1, abs=0.05)
    assert found["nucleus_elongation"] == pytest.approx(1, abs=0.01)
    assert found["nucleus_fullness"] == pytest.approx(1, abs=0.02)
    assert found["nucleus_density_mean"] == pytest.approx(-math.log(91 / 256), rel=1e-5)
    assert found["nucleus_density_deviation"] == pytest.approx(0, abs=1e-5)
    purple, pink = (rgb2lab(np.array([[colour]], dtype=np.uint8))[0, 0] for colour in (PURPLE, PINK))
    assert (found["nucleus_green_red"], found["nucleus_blue_yellow"]) == pytest.approx(purple[1:], abs=0.05)
    cytoplasm = [found[f"cytoplasm_{channel}_mean"] for channel in ("lightness", "green_red", "blue_yellow")]
    assert cytoplasm == pytest.approx(pink, abs=0.05)
    share = found["nucleus_area"]
    assert found["lightness_mean"] == pytest.approx(share * purple[0] + (1 - share) * pink[0], abs=0.05)
    spread = math.sqrt(share * (1 - share)) * (pink[0] - purple[0])
    assert found["lightness_deviation"] == pytest.approx(spread, abs=0.05)


def test_features_tell_an_oval_and_a_lobed_nucleus_from_a_round_one() -> None:
    oval = measured(picture(circle(96, 0.2, stretch=2)))
    assert oval["nucleus_elongation"] == pytest.approx(0.5, abs=0.01)
    assert oval["nucleus_fullness"] == pytest.approx(1, abs=0.02)
    lobes = measured(picture(circle(96, 0.12, 0.3, 0.3) | circle(96, 0.12, 0.7, 0.4) | circle(96, 0.12, 0.4, 0.7)))
    assert lobes["nucleus_fullness"] < 0.7
    assert lobes["nucleus_circularity"] < 0.5


def test_features_are_the_same_at_another_size_turned_or_mirrored() -> None:
    """Augmentation by turns must not smear what a type looks like, nor a run's image size change its meaning."""
    nucleus = circle(64, 0.2, 0.45, 0.4) | circle(64, 0.15, 0.6, 0.7)
    images = picture(nucleus)
    large = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(hand_features(large), hand_features(images), rtol=0.05, atol=0.01)
    torch.manual_seed(0)
    noisy = (images + 0.4 * torch.randn(4, 3, 64, 64)).clamp(-1, 1)
    features = hand_features(noisy)
    for other in (noisy.flip(2), noisy.flip(3), noisy.rot90(1, (2, 3)), noisy.transpose(2, 3)):
        torch.testing.assert_close(hand_features(other), features)
    torch.testing.assert_close(hand_features(noisy[2:3]), features[2:3])
    assert (features.std(0) > 0).all()  # no column is a constant


def test_texture_is_that_of_scikit_image() -> None:
    torch.manual_seed(1)
    grain = torch.rand(2, 1, 16, 16).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    images = (grain + 0.1 * torch.rand(2, 1, 32, 32)).clamp(0, 1).expand(2, 3, 32, 32) * 2 - 1
    angles = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]
    for lightness, features in zip(rgb_to_lab(images.double())[:, 0], hand_features(images), strict=True):
        levels = (lightness / 12.5).floor().clamp(0, 7).numpy().astype(np.uint8)
        counts = graycomatrix(levels, [1], angles, levels=8, symmetric=True).sum(axis=3, keepdims=True)
        for name in ("contrast", "correlation", "energy", "homogeneity"):
            expected = graycoprops(counts, name).item()
            assert features[FEATURES.index(f"texture_{name}")].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_features_of_an_empty_field_are_finite(value: float) -> None:
    """One image without a cell must not turn a whole fit into numbers that are none."""
    assert hand_features(torch.full((1, 3, 32, 32), value)).isfinite().all()
