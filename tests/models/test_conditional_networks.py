"""The networks of section 3.5 are what its tables say, and fit for a gradient penalty and for several processes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig
from models.conditional.networks import Critic, OfEachType, build_classifier, build_critic, build_generator
from models.errors import ModelError
from models.layers import SameSizeDeconvolution, normalization
from models.projected_critic import build_projected_critic

MICRO_GENERATOR = GeneratorConfig(width=4, latent_size=5, blocks=[1, 1, 1])
MICRO_CRITIC = CriticConfig(width=4, hidden=6, blocks=[1, 1, 1])


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def random_images(number: int, size: int) -> Tensor:
    return torch.rand(number, 3, size, size) * 2 - 1


def test_the_networks_are_of_the_size_of_the_tables() -> None:
    """Tables 10 to 12 at 128 pixels, 128 latents, eight types; table 22 says 9.7 million for the generator."""
    assert count(build_generator(GeneratorConfig(), 128, 8)) == 9_779_011
    assert count(build_critic(CriticConfig(), 128)) == 1_267_969
    assert count(build_classifier(ClassifierConfig(), 128, 8)) == 1_268_872


@pytest.mark.parametrize("norm", ["none", "batch", "pixel"])
@pytest.mark.parametrize("size", [4, 12, 20, 32])
def test_every_size_that_four_divides_makes_images_and_scores(size: int, norm: Any) -> None:
    generator = build_generator(GeneratorConfig(width=4, latent_size=5, blocks=[1, 2, 0], norm=norm), size, 3)
    images = generator(torch.randn(2, 5), torch.tensor([0, 2]))
    assert images.shape == (2, 3, size, size)
    assert images.dtype == torch.float32
    assert 0.01 < images.abs().max() <= 1
    critic = build_critic(CriticConfig(width=4, hidden=6, blocks=[1, 0, 2], norm=norm), size, class_outputs=3)
    assert critic(images).shape == (2, 4)
    assert build_classifier(ClassifierConfig(width=4, hidden=6), size, 3)(images).shape == (2, 3)


@pytest.mark.parametrize("norm", ["none", "batch", "pixel"])
def test_every_weight_learns(norm: Any) -> None:
    """A bias that a norm takes away again would have no gradient but rounding, which Adam blows up to full steps."""
    generator = build_generator(GeneratorConfig(width=4, latent_size=5, blocks=[1, 1, 1], norm=norm), 16, 3)
    critic = build_critic(CriticConfig(width=4, hidden=6, blocks=[1, 1, 1], norm=norm), 16)
    images = generator(torch.randn(6, 5), torch.arange(6) % 3)
    images.retain_grad()
    (critic(images).square() * torch.linspace(0.2, 1, 6)[:, None]).sum().backward()
    for network in (generator, critic):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-5, name


def test_the_slope_of_a_critic_can_be_differentiated_again() -> None:
    critic, images = build_critic(MICRO_CRITIC, 20), random_images(2, 20).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    slope.square().sum().backward()
    for name, parameter in critic.named_parameters():
        if name.endswith("weight"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_no_pixel_goes_unseen() -> None:
    """20 pixels halve to 10, 5, 3, 2: the last row and column count as the others do."""
    images = random_images(1, 20).requires_grad_(True)
    build_critic(MICRO_CRITIC, 20)(images).sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum(1) > 0).all()


def test_the_type_counts_where_it_is_given() -> None:
    generator, types = build_generator(MICRO_GENERATOR, 8, 3), torch.tensor([0, 1, 2])
    images = generator(torch.randn(1, 5).expand(3, -1), types)
    assert (images[0] - images[1]).abs().max() > 1e-3
    critic = build_critic(MICRO_CRITIC, 8, shown_classes=3)
    scores = critic(images[:1].expand(3, -1, -1, -1), types)
    assert len(set(scores.flatten().tolist())) == 3


def test_a_deep_critic_without_norms_begins_as_calm_as_a_flat_one() -> None:
    """Weights that let each block double the signal would begin ten blocks with scores in the hundreds."""
    images = random_images(8, 32)
    flat, deep = (Critic(CriticConfig(width=16, blocks=blocks), 32, 64, 0) for blocks in ([1, 0, 0], [10, 10, 10]))
    assert 1 / 3 < deep(images).square().mean().sqrt() / flat(images).square().mean().sqrt() < 3


def test_a_batch_norm_sees_real_and_generated_images_by_themselves() -> None:
    critic = build_critic(CriticConfig(width=4, hidden=6, blocks=[1, 1, 1], norm="batch"), 16)
    real, generated = random_images(3, 16), random_images(3, 16) * 0.1
    joined = critic(torch.cat([real, generated]), parts=2)
    torch.testing.assert_close(joined, torch.cat([critic(real), critic(generated)]))
    assert not torch.allclose(joined, critic(torch.cat([real, generated])))


def test_each_type_has_its_own_network_and_a_missing_type_a_gradient_of_zero() -> None:
    networks = [build_generator(MICRO_GENERATOR, 8, 0) for _ in range(3)]
    generator, latents = OfEachType(networks), torch.randn(4, 5)
    images = generator(latents, torch.tensor([2, 0, 2, 0]))
    for place, number in enumerate([2, 0, 2, 0]):
        torch.testing.assert_close(images[place], networks[number](latents[place : place + 1])[0])
    images.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert all((parameter.grad == 0).all() for parameter in networks[1].parameters() if parameter.grad is not None)


@pytest.mark.parametrize("size", [0, 30, 127])
def test_a_size_that_four_does_not_divide_is_refused(size: int) -> None:
    for build in (
        lambda: build_generator(MICRO_GENERATOR, size, 3),
        lambda: build_critic(MICRO_CRITIC, size),
        lambda: build_classifier(ClassifierConfig(), size, 3),
    ):
        with pytest.raises(ModelError, match=f"images of {size} pixels: the side must be a multiple of 4"):
            build()


def test_a_wrong_setting_is_named_with_its_group() -> None:
    with pytest.raises(ModelError, match=r"classifier.width=0: must be at least 1"):
        ClassifierConfig(width=0)
    with pytest.raises(ModelError, match=r"critic.blocks=\[1, 2\]: give three counts"):
        CriticConfig(blocks=[1, 2])
    with pytest.raises(ModelError, match=r"generator.norm='layer'"):
        GeneratorConfig(norm="layer")  # type: ignore[arg-type]


def test_the_projected_critic_learns_beside_a_classifier_that_stays_as_it_is() -> None:
    critic = build_projected_critic("tf_efficientnet_lite0", None, 32, types=3, width=8).train()
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    optimizer = torch.optim.SGD([each for each in critic.parameters() if each.requires_grad], 0.1)
    images, types = random_images(4, 32).requires_grad_(True), torch.tensor([0, 1, 2, 0])
    scores = critic(images, types)
    assert scores.shape == (4, 3)  # of the pixels and of maps of 4 and 8 pixels
    torch.testing.assert_close(critic(images[1:2], types[1:2]), scores[1:2], msg="an image's score depends on others")
    assert not torch.equal(critic(images, types.flip(0)), scores), "the type changes nothing"
    scores.square().sum().backward()
    optimizer.step()
    changed = {name.partition(".")[0] for name, tensor in critic.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"judges", "of_pixels"}
    assert images.grad is not None
    assert images.grad.abs().sum(dim=(1, 2, 3)).min() > 0
    for layer in critic.judges.modules():
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_a_place_that_outgrows_the_others_changes_nothing_beside_it_under_a_pixel_norm() -> None:
    """Under batch norm it does: in one type's images a spot of pure white or pink grew that no step moved again."""
    features = torch.randn(2, 6, 4, 4)
    outgrown = features.clone()
    outgrown[0, :, 1, 2] *= 1e4
    beside = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    beside[0, :, 1, 2] = False
    norms = {kind: normalization(kind, 6) for kind in ("batch", "pixel")}
    changes = {kind: ((norm(outgrown) - norm(features)) * beside).abs().max().item() for kind, norm in norms.items()}
    assert changes["batch"] > 1
    assert changes["pixel"] == 0
    placed = norms["pixel"](outgrown)[0, :, 1, 2]
    assert placed.mean().item() == pytest.approx(0, abs=1e-4)
    assert placed.square().mean().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_deconvolution_computed_as_a_convolution_is_that_function(kernel: int) -> None:
    torch.manual_seed(0)
    layer, features = SameSizeDeconvolution(4, 6, kernel).double(), torch.randn(2, 4, 7, 9, dtype=torch.float64)
    expected = functional.conv_transpose2d(features, layer.weight, layer.bias, padding=kernel // 2)
    torch.testing.assert_close(layer(features), expected)
