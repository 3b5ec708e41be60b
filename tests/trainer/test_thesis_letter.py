"""If these fail, a model that is named the thesis's is another one: its layers (tables 10-12), sizes and equations."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.randomness import derive_key, uniform
from data_pipeline.stream.stream import MicroBatch
from models.conditional.networks import ResidualBlock
from models.layers import SLOPE
from trainer.learners.learner import Setting
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.runs.composition import read_config
from trainer.runs.registry import algorithm_class
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.episode import episode_class
from trainer.tasks.stain.config import StainRunConfig

SEED = 11
# Kind, kernel, stride, shape of the output; "residual" is a block of two layers.
TABLE_10 = [
    ("fully connected", None, None, (64 * 32 * 32,)),
    *[("residual, transposed", 3, 1, (64, 32, 32))] * 2,
    ("deconvolution", 5, 2, (64, 64, 64)),
    *[("residual, transposed", 3, 1, (64, 64, 64))] * 4,
    ("deconvolution", 5, 2, (64, 128, 128)),
    *[("residual, transposed", 3, 1, (64, 128, 128))] * 2,
    ("deconvolution", 5, 1, (3, 128, 128)),  # 64 channels in the table, which are no image
]


def tables_11_and_12(outputs: int) -> list[Any]:
    return [
        ("convolution", 5, 2, (64, 64, 64)),
        *[("residual", 3, 1, (64, 64, 64))] * 2,
        ("average pooling", 2, 2, (64, 32, 32)),
        *[("residual", 3, 1, (64, 32, 32))] * 4,
        ("average pooling", 2, 2, (64, 16, 16)),
        *[("residual", 3, 1, (64, 16, 16))] * 4,
        ("average pooling", 2, 2, (64, 8, 8)),
        ("fully connected", None, None, (128,)),
        ("fully connected", None, None, (outputs,)),
    ]


def layers_of(network: nn.Module, *inputs: Tensor) -> list[Any]:
    """The layers as a row of the tables each, in the order in which images pass them."""
    rows: list[Any] = []

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        shape = tuple(output.shape[1:])
        if isinstance(module, ResidualBlock):
            layers = [each for each in module.branch if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)]
            assert len(layers) == 2
            kind = "residual, transposed" if isinstance(layers[0], nn.ConvTranspose2d) else "residual"
            rows.append((kind, layers[0].kernel_size[0], layers[0].stride[0], shape))
        elif isinstance(module, nn.Linear):
            rows.append(("fully connected", None, None, shape))
        elif isinstance(module, nn.AvgPool2d):
            rows.append(("average pooling", module.kernel_size, module.stride, shape))
        else:
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            kind = "deconvolution" if isinstance(module, nn.ConvTranspose2d) else "convolution"
            rows.append((kind, module.kernel_size[0], module.stride[0], shape))

    inside = {id(each) for block in network.modules() if isinstance(block, ResidualBlock) for each in block.modules()}
    for module in network.modules():
        wanted = (nn.Linear, nn.AvgPool2d, nn.Conv2d, nn.ConvTranspose2d)
        if isinstance(module, ResidualBlock) or (isinstance(module, wanted) and id(module) not in inside):
            module.register_forward_hook(note)
    network(*inputs)
    return rows


def parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def conditional(*changes: str) -> ConditionalRunConfig:
    return read_config(ConditionalRunConfig, "train_conditional_gan", ["model=c_wgan_gp_thesis", *changes])


def test_the_networks_of_c_wgan_gp_are_tables_10_to_12_layer_by_layer() -> None:
    model = conditional().model
    with torch.device("meta"):
        networks = algorithm_class("conditional", model.algorithm).build_networks(model, 128, 8)
        latents, images = torch.empty(2, 128), torch.empty(2, 3, 128, 128)
        assert layers_of(networks["generator"], latents, torch.zeros(2, dtype=torch.long)) == TABLE_10
        assert layers_of(networks["critic"], images) == tables_11_and_12(1)
        assert layers_of(networks["classifier"], images) == tables_11_and_12(8)
    sizes = {name: round(parameters(network) / 1e6, 2) for name, network in networks.items()}
    assert sizes == {"generator": 9.78, "critic": 1.27, "classifier": 1.27}


def activated(features: Tensor) -> Tensor:
    return torch.where(features > 0, features, SLOPE * features)


def residual(weights: dict[str, Tensor], name: str, features: Tensor, layer: Any) -> Tensor:
    """Two 3x3 layers and an unchanged shortcut."""
    found = features
    for place in (2, 5):
        found = layer(
            activated(found),
            weights[f"{name}.branch.{place}.weight"],
            weights[f"{name}.branch.{place}.bias"],
            padding=1,
        )
    return features + found


def test_generator_and_critic_compute_what_their_tables_say() -> None:
    model = conditional(
        "model.generator.width=4", "model.generator.latent_size=5", "model.critic.width=4", "model.critic.hidden=6"
    ).model
    torch.manual_seed(0)
    networks = algorithm_class("conditional", model.algorithm).build_networks(model, 32, 3)
    latents, types = torch.randn(2, 5), torch.tensor([2, 0])

    weights = dict(networks["generator"].state_dict())
    one_hot = 5**0.5 * F.one_hot(types, 3)
    features = F.linear(torch.cat([latents, one_hot], 1), weights["linear.weight"], weights["linear.bias"])
    features, place = features.view(2, 4, 8, 8), 0
    for blocks, upsampled in ((2, True), (4, True), (2, False)):
        for _ in range(blocks):
            features = residual(weights, f"trunk.{place}", features, F.conv_transpose2d)
            place += 1
        features, place = activated(features), place + 2
        if upsampled:
            name = f"trunk.{place}"
            features = F.conv_transpose2d(features, weights[f"{name}.weight"], weights[f"{name}.bias"], 2, 2, 1)
            place += 1
    images = torch.tanh(F.conv_transpose2d(features, weights["last.weight"], weights["last.bias"], 1, 2))
    torch.testing.assert_close(networks["generator"](latents, types), images)

    weights = dict(networks["critic"].state_dict())
    features = F.conv2d(images, weights["trunk.0.weight"], weights["trunk.0.bias"], stride=2, padding=2)
    place = 1
    for blocks in (2, 4, 4):
        for _ in range(blocks):
            features = residual(weights, f"trunk.{place}", features, F.conv2d)
            place += 1
        half = features.shape[-1] // 2
        features, place = features.reshape(2, 4, half, 2, half, 2).mean((3, 5)), place + 1
    hidden = activated(activated(features).flatten(1) @ weights["hidden.0.weight"].T + weights["hidden.0.bias"])
    torch.testing.assert_close(networks["critic"](images), hidden @ weights["last.weight"].T + weights["last.bias"])


def test_the_other_generators_have_the_thesis_s_sizes() -> None:
    stain = read_config(StainRunConfig, "train_stain_gan", ["model=w_cyclegan_gp_thesis"]).model
    few_shot = read_config(FewShotRunConfig, "train_few_shot_gan", ["model=few_shot_meta_thesis"])
    with torch.device("meta"):
        two_way = algorithm_class("stain", stain.algorithm).build_generators(stain, 128)
        networks = episode_class(few_shot.model).build_networks(few_shot.model, 128)
    assert [round(parameters(each) / 1e6, 1) for each in (two_way.a_to_b, two_way.b_to_a)] == [41.8, 41.8]
    assert 5.75e6 < parameters(networks["generator"]) < 5.95e6  # table 22


def test_a_model_s_file_is_the_whole_letter() -> None:
    """Nothing is left for the user to add: no running average, no augmentation, lambda constant."""
    few_shot = read_config(FewShotRunConfig, "train_few_shot_gan", ["model=few_shot_meta_thesis"])
    stain = read_config(StainRunConfig, "train_stain_gan", ["model=w_cyclegan_gp_thesis"])
    for config in (conditional(), few_shot, stain):
        augment = config.data.augment
        assert (augment.flip, augment.rotation, augment.scale, augment.shift) == (False, 0, 1, 0)
    assert few_shot.adaptation.average_decay == conditional().model.generator_optimizer.average_decay == 0
    algorithm = algorithm_class("conditional", "c_wgan_gp_thesis")
    assert algorithm.Options().classification_first == algorithm.Options().classification_last == 1.0
    asked = read_config(FewShotRunConfig, "train_few_shot_gan", ["model=few_shot_meta_thesis", "data/augment=flip"])
    assert asked.data.augment.flip, "the command line still chooses"


@pytest.mark.parametrize("model", ["w_cyclegan_gp", "w_cyclegan_gp_thesis"])
def test_the_gradients_of_w_cyclegan_gp_are_those_of_equations_23_to_30(model: str) -> None:
    narrow = ["model.generator.width=2", "model.generator.depth=2", "model.critic.width=3", "model.critic.layers=1"]
    changes = ["model.generator.start=noise", "model.critic_steps=1", "data.image_size=16"]
    config = read_config(StainRunConfig, "train_stain_gan", [f"model={model}", *narrow, *changes, "a=x", "b=y"])
    # Plain descent at rate 1: what the weights lose is the gradient.
    descent = OptimizerConfig("sgd", 1.0, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0, clip_norm=None)
    for name in ("generator_optimizer", "critic_optimizer"):
        object.__setattr__(config.model, name, descent)
    torch.manual_seed(2)
    algorithm_type = algorithm_class("stain", config.model.algorithm)
    setting = Setting("fp32", 3, global_batch=3, seed=SEED)
    algorithm = algorithm_type(config, algorithm_type.build_generators(config.model, 16), setting)
    a, b = (MicroBatch(torch.rand(3, 3, 16, 16) * 2 - 1, torch.zeros(3), *[np.arange(3)] * 2, 0, 1) for _ in range(2))
    before = {name: copy.deepcopy(learner.module) for name, learner in algorithm.learners.items()}
    algorithm.step({"a": iter([[a]]), "b": iter([[b]])}, detailed=False)
    lost = {
        name: [old - new for old, new in zip(before[name].parameters(), learner.module.parameters(), strict=True)]
        for name, learner in algorithm.learners.items()
    }
    critics, generators = before["critics"], before["generators"]
    euclidean, adversarial = model.endswith("thesis"), 1.0 if model.endswith("thesis") else 10.0

    fakes = {"a": generators.b_to_a(b.images).detach(), "b": generators.a_to_b(a.images).detach()}
    total = torch.zeros(())
    for name, pair in (("a", a), ("b", b)):
        critic, real, fake = getattr(critics, name), pair.images, fakes[name]
        total = total + (critic(fake).mean() - critic(real).mean())  # equations 27, 28
        points = uniform(derive_key(SEED, "penalty", name), pair.positions, 1)[:, 0]
        for number, point in enumerate(points):  # equation 30, its sign turned as in 26
            between = float(point) * real[number] + (1 - float(point)) * fake[number]
            between = between[None].requires_grad_(True)
            (slope,) = torch.autograd.grad(critic(between).mean(), between, create_graph=True)
            length = slope.norm() if euclidean else slope.norm() * between.numel() ** 0.5
            total = total + 10 * (length - 1) ** 2 / 3
    expected = {"critics": torch.autograd.grad(total, list(critics.parameters()), allow_unused=True)}

    moved = algorithm.learners["critics"].module
    fake_a, fake_b = generators.b_to_a(b.images), generators.a_to_b(a.images)
    loss = -adversarial * (moved.a(fake_a).mean() + moved.b(fake_b).mean())
    cycle = (generators.b_to_a(fake_b) - a.images).abs().mean() + (generators.a_to_b(fake_a) - b.images).abs().mean()
    same = (generators.b_to_a(a.images) - a.images).abs().mean() + (generators.a_to_b(b.images) - b.images).abs().mean()
    loss = loss + 10 * cycle + 5 * same  # equations 29 and 23
    expected["generators"] = torch.autograd.grad(loss, list(generators.parameters()))
    for name, gradients in expected.items():
        for found, wanted in zip(lost[name], gradients, strict=True):
            wanted = torch.zeros_like(found) if wanted is None else wanted
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-4)
