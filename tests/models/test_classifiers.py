"""The classifier: the thesis's network is what it says, and its small relatives work alike."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from models.classifiers.architectures.senet import SENetGE, pool_to_grid
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from models.classifiers.input_adapter import InputAdapter, stretch_channels
from models.errors import ModelError

CONFIGS = Path(__file__).parents[2] / "configs/model"
ALL_CONFIGS = sorted(CONFIGS.glob("*.yaml"))
# Algorithms of several networks have their own configurations beside them.
MODEL_CONFIGS = [path for path in ALL_CONFIGS if "algorithm:" not in path.read_text()]
MICRO = ClassifierConfig(
    name="micro",
    timm_name="",
    block="basic",
    layers=(1, 1),
    widths=(8, 16),
    groups=1,
    reduction=4,
    stem_widths=(6, 8),
    ge_kernel=3,
)


def read_config(path: Path, **changes: Any) -> ClassifierConfig:
    return ClassifierConfig(**yaml.safe_load(path.read_text()) | changes)


def randomised(network: nn.Module) -> nn.Module:
    """Random statistics and affine values in every batch norm, so that no part is an identity by accident."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.2)
    return network.eval()


@pytest.mark.parametrize("path", MODEL_CONFIGS, ids=lambda path: path.stem)
def test_every_model_config_builds(path: Path) -> None:
    """`model=NAME` on the command line must not fail for a file that ships with the project."""
    config = read_config(path, weights=None)
    with torch.device("meta"):
        network = build_classifier(config, 12)
        assert network(torch.empty(2, 3, 64, 64)).shape == (2, 12)
    assert config.name in (path.stem, "timm")


def test_senet154_ge_is_of_the_thesis_size() -> None:
    """A network of another size would not be the one whose scores are reproduced."""
    with torch.device("meta"):
        with_ge = build_classifier(ClassifierConfig(), 12)
        without = build_classifier(ClassifierConfig(ge=False), 12)
    count = sum(parameter.numel() for parameter in with_ge.parameters())
    assert 113e6 < count < 115e6
    assert round(sum(parameter.numel() for parameter in without.parameters()) / 1e6, 2) == 113.06


def test_the_thesis_s_gate_is_a_map_and_f1_the_first_convolution() -> None:
    """Figures 38 and 39: a pair of strided depth-wise convolutions, 7x7 to 4x4 to 2x2, and 64 channels of F1."""
    with torch.device("meta"):
        network = build_classifier(read_config(CONFIGS / "senet154_ge_thesis.yaml"), 12).network
    top = network.attention
    assert top.project.weight.shape == (2048, 64, 1, 1)
    gathered = [part for part in top.gather_excite.gather if isinstance(part, nn.Conv2d)]
    assert [(part.stride, part.groups) for part in gathered] == [((2, 2), 2048)] * 2
    assert top.gather_excite.gather(torch.empty(2, 2048, 7, 7, device="meta")).shape == (2, 2048, 2, 2)


def test_senet154_ge_takes_one_training_step_at_224() -> None:
    """The thesis's network trains: finite loss, a gradient for every parameter, weights that move."""
    torch.manual_seed(0)
    network = build_classifier(ClassifierConfig(), 12).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    before = network.get_parameter("network.attention.project.weight").detach().clone()
    loss = F.cross_entropy(network(torch.rand(2, 3, 224, 224) * 2 - 1), torch.tensor([3, 8]), label_smoothing=0.1)
    torch.autograd.backward(loss)
    optimiser.step()
    assert torch.isfinite(loss)
    silent = [name for name, value in network.named_parameters() if value.grad is None]
    assert not silent
    assert all(torch.isfinite(value.grad).all() for value in network.parameters() if value.grad is not None)
    assert not torch.equal(before, network.get_parameter("network.attention.project.weight"))


@pytest.mark.parametrize("name", ["senet_small_ge", "senet_tiny_ge"])
@pytest.mark.parametrize("size", [64, 96, 100, 224])
def test_small_relatives_take_any_image_size(name: str, size: int) -> None:
    """The same configuration serves another resolution without a change."""
    path = next(path for path in MODEL_CONFIGS if path.stem == name)
    network = build_classifier(read_config(path), 12)
    logits = network(torch.rand(2, 3, size, size) * 2 - 1)
    assert logits.shape == (2, 12)
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    assert all(value.grad is not None for value in network.parameters())


@pytest.mark.parametrize(
    ("fusion", "first_of", "channels"),
    [("sum", "stem", 8), ("product", "stem", 8), ("concatenate", "stem", 8), ("sum", "convolution", 6)],
)
def test_attention_is_wired_as_in_figure_38(fusion: Any, first_of: Any, channels: int) -> None:
    """S = SE(F1' * F_L), E = GE(F_L), Y = (S + E) fused with F_L, recomputed by hand."""
    torch.manual_seed(1)
    network = SENetGE(dataclasses.replace(MICRO, fusion=fusion, ge_extent=2, ge_first=first_of), 5)
    randomised(network)
    seen: dict[str, Tensor] = {}
    f1 = "layer0" if first_of == "stem" else "layer0.relu1"
    for name in (f1, "pool0", "layer2", "attention"):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
    images = torch.randn(2, 3, 32, 32)
    logits = network(images)
    first, last = seen[f1], seen["layer2"]
    assert first.shape == (2, channels, 16, 16)
    assert seen["pool0"].shape == (2, 8, 8, 8)
    assert last.shape == (2, 16, 4, 4)

    top = network.attention
    assert top is not None
    pooled = first.reshape(2, channels, 4, 4, 4, 4).mean((3, 5))
    norm = top.project_norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    projected = torch.einsum("oc,nchw->nohw", top.project.weight[:, :, 0, 0], pooled)
    centred = (projected - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
    product = (centred * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)) * last
    se = top.squeeze_excite
    assert se.fc1.bias is not None
    assert se.fc2.bias is not None
    hidden = (product.mean((2, 3)) @ se.fc1.weight[:, :, 0, 0].T + se.fc1.bias).relu()
    gate = (hidden @ se.fc2.weight[:, :, 0, 0].T + se.fc2.bias).sigmoid()
    attention = product * gate[:, :, None, None] + top.gather_excite(last)
    if fusion == "sum":
        expected = attention + last
    elif fusion == "product":
        expected = attention * last
    else:
        expected = top.merge(torch.cat([attention, last], 1))
    torch.testing.assert_close(seen["attention"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, network.last_linear(expected.mean((2, 3))), rtol=1e-4, atol=1e-5)


def test_pooling_to_the_grid_equals_adaptive_pooling() -> None:
    """The deterministic pooling of whole ratios is the same average as the general one, to the last grid."""
    features = torch.randn(2, 3, 24, 18, dtype=torch.float64)
    for grid in [(6, 6), (24, 18), (1, 1), (5, 4), (6, 5)]:
        torch.testing.assert_close(pool_to_grid(features, grid), F.adaptive_avg_pool2d(features, grid))


def test_without_ge_it_is_timms_legacy_senet154() -> None:
    """The ablation's network is plain SENet-154: timm's weights give timm's logits, and no GE is left."""
    torch.manual_seed(2)
    theirs = randomised(timm.create_model("legacy_senet154", num_classes=12))
    ours = build_classifier(ClassifierConfig(ge=False), 12).eval()
    assert isinstance(ours, InputAdapter)
    ours.network.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = theirs((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        torch.testing.assert_close(ours(images * 2 - 1), expected, rtol=1e-3, atol=1e-4)
    assert not [name for name in ours.state_dict() if "attention" in name]


def test_zero_init_starts_every_branch_at_zero_and_lets_it_learn() -> None:
    """A branch that starts at zero must still receive a gradient, or half the network would never train."""
    torch.manual_seed(3)
    network = SENetGE(dataclasses.replace(MICRO, zero_init=True), 5)
    block = network.get_submodule("layer2.0")
    residuals: list[Tensor] = []
    block.get_submodule("bn2").register_forward_hook(lambda _module, _inputs, output: residuals.append(output))
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert residuals[0].abs().max() == 0
    for name in ("layer2.0.bn2.weight", "attention.project_norm.weight"):
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().min() > 0


def test_two_builds_from_one_seed_are_equal() -> None:
    """Processes that build the same model from the same seed start from the same weights."""
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        states.append(SENetGE(MICRO, 5).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "resnet"}, "model.architecture='resnet'"),
        ({"fusion": "mean"}, "sum, product, concatenate"),
        ({"layers": (1, 1, 1)}, "one positive number per stage"),
        ({"reduction": 16}, "smallest width, 8"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"ge_extent": 3}, "2, 4, 8"),
        ({"groups": 5}, "groups"),
        ({"architecture": "timm"}, "needs the name of a timm model"),
        ({"weights": "pretrained"}, "needs model.timm_name"),
    ],
)
def test_impossible_config_is_one_clear_line(changes: dict[str, Any], said: str) -> None:
    """A slip in the configuration is named, not left to fail in a tensor operation later."""
    with pytest.raises(ModelError, match=r"^[^\n]+$") as raised:
        build_classifier(dataclasses.replace(MICRO, **changes), 5)
    assert said in str(raised.value)


def test_a_stretching_network_answers_alike_under_another_light() -> None:
    """Gain and offset of a channel are a laboratory's, not the cell's; a flat image gives an answer all the same."""
    torch.manual_seed(4)
    network = randomised(build_classifier(dataclasses.replace(MICRO, stretch=True), 5))
    images = torch.rand(3, 3, 64, 64) * 1.2 - 0.6
    gain, offset = torch.tensor([0.8, 1.1, 0.9]).view(3, 1, 1), torch.tensor([0.1, -0.2, 0.05]).view(3, 1, 1)
    with torch.inference_mode():
        answers = network(images)
        torch.testing.assert_close(network(images * gain + offset), answers, rtol=1e-3, atol=1e-4)
        assert (network(images * gain.flip(0).square()) - answers).abs().max() < 1e-3
        assert network(torch.full((1, 3, 64, 64), 0.7)).isfinite().all()
    plain = build_classifier(MICRO, 5, weights=None)
    assert [name.removeprefix("network.") for name in network.state_dict()] == list(plain.state_dict())


def test_a_stretched_image_has_its_percentiles_where_they_belong() -> None:
    """2 % of a channel lie below -0.9 and 10 % above 0.8, whatever they were; nothing lies beyond 1.2."""
    images = torch.randn(2, 3, 96, 96).mul(0.2).add(torch.tensor([0.3, 0.0, -0.2]).view(3, 1, 1)).clamp(-1, 1)
    stretched = stretch_channels(images)
    assert (stretched < -0.9).float().mean(dim=(2, 3)).sub(0.02).abs().max() < 0.01
    assert (stretched > 0.8).float().mean(dim=(2, 3)).sub(0.1).abs().max() < 0.02
    assert stretched.abs().max() <= 1.2
