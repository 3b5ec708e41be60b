"""The networks of stain normalisation are what their papers say, and fit for a gradient penalty."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.layer_choices import Norm
from models.layers import NearestUpsampling
from models.stain.build import build_critic, build_generator
from models.stain.cielab import rgb_to_lab
from models.stain.colour_statistics import ColourStatistics, restain
from models.stain.config import CriticConfig, GeneratorConfig
from models.stain.two_way import DomainPair, TwoWay

MICRO = {
    "unet": GeneratorConfig(width=4, depth=3),
    "resnet": GeneratorConfig(architecture="resnet", width=4, blocks=2),
    "student": GeneratorConfig(architecture="student", width=8),
}


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def random_images(count: int, *size: int) -> Tensor:
    return torch.rand(count, 3, *size) * 2 - 1


@pytest.mark.parametrize("bias", [True, False])
def test_nearest_upsampling_is_a_convolution_of_repeated_pixels(bias: bool) -> None:
    layer = NearestUpsampling(5, 7, bias).double()
    features = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    repeated = functional.interpolate(features, scale_factor=2, mode="nearest")
    expected = functional.conv2d(repeated, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(features), expected)


@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize(
    ("architecture", "depth", "size"),
    [
        ("unet", 1, (6, 2)),
        ("unet", 3, (24, 40)),
        ("unet", 5, (32, 32)),  # down to a map of 1x1
        ("unet", 5, (64, 32)),
        ("resnet", 1, (8, 8)),
        ("resnet", 1, (20, 36)),
        ("student", 1, (5, 7)),
    ],
)
def test_generator_returns_images_of_the_same_size(
    architecture: Any, depth: int, size: tuple[int, int], norm: Any, upsample: Any
) -> None:
    """Every size that a network says it takes works in training, with one image, and all of it learns."""
    config = GeneratorConfig(architecture, width=4, depth=depth, blocks=1, norm=norm, upsample=upsample)
    network = build_generator(config, size).train()
    out = network(random_images(1, *size))
    assert out.shape == (1, 3, *size)
    assert out.dtype == torch.float32
    assert out.abs().max() <= 1
    out.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("kind", "config", "exact", "published"),
    [
        # CycleGAN's published code counts 11.378 million: there each convolution has a bias and a norm has no scale
        # and offset, here it is the other way round (5248 more).
        ("resnet", GeneratorConfig("resnet"), 11_383_427, 11.38),
        # pix2pix-256 with batch norm: its first and deepest convolution have a bias here (576 more).
        ("unet", GeneratorConfig(depth=8, norm="batch"), 54_414_531, 54.41),
        ("student", GeneratorConfig("student", width=32), 1_283, 0.00),
        # With an instance norm, as published, and without one: the same but for the scales.
        ("critic", CriticConfig(), 2_764_737, 2.76),
        ("critic", CriticConfig(norm="instance"), 2_765_633, 2.77),
    ],
)
def test_networks_are_of_the_published_size(kind: str, config: Any, exact: int, published: float) -> None:
    """A rival of another size than its paper's would not be the rival that it is named after."""
    network = build_critic(config, 256) if kind == "critic" else build_generator(config, 256)
    assert sum(parameter.numel() for parameter in network.parameters()) == exact
    assert round(exact / 1e6, 2) == published


def test_no_bias_is_left_before_a_norm() -> None:
    """A bias that a norm takes away again has no gradient but rounding, which Adam would blow up to full steps."""
    for name in ("unet", "resnet"):
        network = build_generator(MICRO[name], 16)
        network(random_images(2, 16, 16)).sum().backward()
        for parameter_name, parameter in network.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 1e-5, f"{name}: {parameter_name}"


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["unet", "resnet", "student"])
def test_residual_generator_starts_as_the_identity(architecture: str, precision: torch.dtype) -> None:
    """Every 8-bit value comes back as itself under mixed precision too, and the network can leave that point."""
    network = build_generator(dataclasses.replace(MICRO[architecture], start="identity"), 16)
    levels = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = levels / 127.5 - 1
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        out = network(images)
    assert (out - images).abs().max() < 2 / 255
    assert torch.equal(((out + 1) * 127.5).round(), levels)
    out.sum().backward()
    last = list(network.body.last.parameters())
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in last)


def test_generator_that_starts_as_reinhards_transfer_does_what_it_does_and_learns_through_it() -> None:
    """Whatever tint an image has, the network starts with the target's; a flat image must not stop the training."""
    network = build_generator(dataclasses.replace(MICRO["unet"], start="reinhard"), 16)
    target = ColourStatistics.typical(random_images(4, 16, 16) * 0.2)
    network.target = target
    images = torch.cat([0.3 * random_images(3, 16, 16) + 0.2, torch.full((1, 3, 16, 16), -1.0)]).requires_grad_(True)
    made = network(images)
    torch.testing.assert_close(made, restain(images, None, target), atol=2 / 255, rtol=0)
    found = ColourStatistics.of_each(rgb_to_lab(made[:3]))
    torch.testing.assert_close(found.mean, target.mean.expand(3, -1, -1, -1), atol=0.5, rtol=0)
    tinted = 0.8 * images[:1].detach() + 0.1
    torch.testing.assert_close(network(tinted), made[:1], atol=0.05, rtol=0)
    made.square().sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert images.grad[:3].abs().max() > 0
    assert {"target_mean", "target_deviation"} <= network.state_dict().keys()


def test_weights_start_as_in_the_papers() -> None:
    """Deviation 0.02 for the convolutions; a student starts wide enough for its images to reach its output."""
    for network in (
        build_generator(GeneratorConfig(width=16, depth=3), 16),
        build_generator(GeneratorConfig("resnet", width=16), 16),
        build_critic(CriticConfig(width=16), 64),
    ):
        weights = torch.cat([value.flatten() for value in network.parameters() if value.dim() == 4])
        assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert build_generator(GeneratorConfig("student", width=32), 8)(random_images(4, 8, 8)).std() > 0.01


def test_generators_from_one_seed_are_equal() -> None:
    """Processes that build the same generator from the same seed start from the same weights."""
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        states.append(build_generator(MICRO["unet"], 16).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("architecture", ["unet", "resnet"])
def test_weights_serve_another_image_size(architecture: str) -> None:
    """A generator trained at one resolution can be loaded and used at another."""
    config = MICRO[architecture]
    larger = build_generator(config, (24, 32))
    larger.load_state_dict(build_generator(config, 8).state_dict())
    assert larger(random_images(1, 24, 32)).shape == (1, 3, 24, 32)


def test_unet_passes_detail_by_its_skip_connections() -> None:
    """With the deepest level silenced, the output still follows the image: structure does not go through 1x1."""
    network = build_generator(GeneratorConfig(width=4, depth=4), 16)
    network.body.get_submodule("encoder.3").register_forward_hook(lambda _module, _inputs, output: output * 0)
    one, other = network(random_images(1, 16, 16)), network(random_images(1, 16, 16))
    assert (one - other).abs().amax((0, 1)).min() > 0


def test_student_sees_one_pixel() -> None:
    """Whatever a student learns, it recolours: a pixel's output follows from that pixel alone."""
    network = build_generator(MICRO["student"], 6)
    images = random_images(2, 6, 6)
    order = torch.randperm(36)
    moved = images.flatten(2)[:, :, order].view_as(images)
    torch.testing.assert_close(network(moved), network(images).flatten(2)[:, :, order].view_as(images))
    changed = images.clone()
    changed[0, :, 2, 3] += 0.5
    differs = (network(changed) - network(images)).abs().amax(1) > 0
    assert differs.nonzero().tolist() == [[0, 2, 3]]


@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize("name", ["unet", "resnet", "student", "critic"])
def test_an_image_alone_gives_what_it_gives_in_a_batch(name: str, norm: Any) -> None:
    """How images are batched must not show in them: micro-batches and single images are equal."""
    network: nn.Module
    if name == "critic":
        network = build_critic(CriticConfig(width=4, norm=norm), 32)
    else:
        network = build_generator(dataclasses.replace(MICRO[name], norm=norm), 32)
    images = random_images(3, 32, 32)
    together = network.train()(images)
    for index in range(3):
        torch.testing.assert_close(network(images[index : index + 1]), together[index : index + 1])


@pytest.mark.parametrize(("layers", "published"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field_is_the_published_one(layers: int, published: int) -> None:
    """What one score sees, measured: the rows and columns of the image that move it."""
    config = CriticConfig(width=4, layers=layers)
    critic = build_critic(config, (128, 160)).double()
    images = torch.randn(1, 3, 128, 160, dtype=torch.float64, requires_grad=True)
    scores = critic(images)
    assert scores.shape == (1, 1, 128 // 2**layers - 2, 160 // 2**layers - 2)
    (gradient,) = torch.autograd.grad(scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2], images)
    seen = gradient[0].abs().amax(0) > 0
    assert seen.any(1).sum() == published
    assert seen.any(0).sum() == published


@pytest.mark.parametrize("layers", [1, 3])
def test_smallest_image_gives_one_score(layers: int) -> None:
    """The limit that is named is the true one: it works there, and one pixel less is refused in one line."""
    config = CriticConfig(width=4, layers=layers, norm="instance")
    size = config.smallest_image
    assert build_critic(config, size, in_channels=6)(torch.randn(1, 6, size, size)).shape == (1, 1, 1, 1)
    with pytest.raises(ModelError, match=rf"^[^\n]*at least {size}; give critic.layers[^\n]*$"):
        build_critic(config, (size, size - 1))


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_gradient_penalty_differentiates_through_the_critic(norm: Norm) -> None:
    """The penalty's slope along a random direction of the weights equals its finite difference."""
    critic = build_critic(CriticConfig(width=4, layers=2, norm=norm), 16).double()
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def penalty() -> Tensor:
        points = images.clone().requires_grad_()
        scores = critic(points).mean((1, 2, 3))
        (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    parameters = [parameter for parameter in critic.parameters() if parameter.dim() == 4]
    directions = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(penalty(), parameters)
    slope = sum((gradient * way).sum() for gradient, way in zip(gradients, directions, strict=True))
    step, values = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, way in zip(parameters, directions, strict=True):
                parameter.add_(way, alpha=sign * step)
        values.append(penalty().detach())
    assert slope != 0
    torch.testing.assert_close(slope, (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("norm", ["instance", "none", "batch"])
def test_two_way_translation_is_figure_22(norm: Norm, identity: bool) -> None:
    """Joined calls give what single calls give, forward and backward; batch statistics never mix two stains."""
    config = dataclasses.replace(MICRO["unet"], norm=norm)
    two_way = TwoWay(build_generator(config, 16), build_generator(config, 16)).train()
    real_a, real_b = random_images(2, 16, 16), random_images(3, 16, 16) * 0.3 + 0.5
    out = two_way(real_a, real_b, identity=identity)
    ab, ba = two_way.a_to_b, two_way.b_to_a
    expected = {
        "fake_b": ab(real_a),
        "fake_a": ba(real_b),
        "cycle_a": ba(ab(real_a)),
        "cycle_b": ab(ba(real_b)),
        "same_a": ba(real_a) if identity else None,
        "same_b": ab(real_b) if identity else None,
    }
    given = {name: image for name, image in expected.items() if image is not None}
    assert {name for name, image in out._asdict().items() if image is not None} == set(given)
    weights = {name: torch.randn_like(image) for name, image in given.items()}
    for name, image in given.items():
        torch.testing.assert_close(getattr(out, name), image, rtol=1e-4, atol=1e-5)
    parameters = list(two_way.parameters())
    ours = torch.autograd.grad(sum((getattr(out, name) * weights[name]).sum() for name in given), parameters)
    theirs = torch.autograd.grad(sum((given[name] * weights[name]).sum() for name in given), parameters)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_cycle_gradient_reaches_the_generated_image() -> None:
    """The pull of each loss on a generated image can be logged: the cycle hangs on the very tensor returned."""
    two_way = TwoWay(build_generator(MICRO["unet"], 16), build_generator(MICRO["unet"], 16))
    out = two_way(random_images(1, 16, 16), random_images(1, 16, 16))
    for cycle, fake in ((out.cycle_a, out.fake_b), (out.cycle_b, out.fake_a)):
        (gradient,) = torch.autograd.grad(cycle.sum(), fake, retain_graph=True)
        assert gradient.abs().max() > 0


def test_each_critic_scores_its_own_domain() -> None:
    """Swapped critics would train each stain towards the other."""
    pair = DomainPair(build_critic(CriticConfig(width=4), 32), build_critic(CriticConfig(width=4), 32))
    images_a, images_b = random_images(2, 32, 32), random_images(3, 32, 32)
    map_a, map_b = pair(images_a, images_b)
    assert torch.equal(map_a, pair.a(images_a))
    assert torch.equal(map_b, pair.b(images_b))


@pytest.mark.parametrize(
    ("changes", "size", "said"),
    [
        ({"width": 0}, 64, "generator.width=0"),
        ({"depth": 0}, 64, "generator.depth=0"),
        ({"blocks": 0}, 64, "generator.blocks=0"),
        ({"norm": "layer"}, 64, "generator.norm='layer': choose one of instance, batch, pixel, none"),
        ({"architecture": "unet2"}, 64, "unet, resnet, student"),
        ({"upsample": "bilinear"}, 64, "transposed, nearest"),
        ({}, 96, "96 x 96 pixels do not fit generator.architecture=unet with generator.depth=7: each side must be a "),
        ({}, (128, 96), "multiple of 128; give images of such a size or generator.depth=5"),
        ({}, 99, "give images of such a size"),
        ({}, 0, "0 x 0"),
        ({"architecture": "resnet"}, 66, "multiple of 4"),
        ({"architecture": "resnet"}, 4, "at least 8"),
    ],
)
def test_impossible_generator_is_one_clear_line(changes: dict[str, Any], size: Any, said: str) -> None:
    """A slip in the configuration or a size that does not fit is named, not left to fail in a tensor operation."""
    with pytest.raises(ModelError, match=r"^[^\n]+$") as raised:
        build_generator(GeneratorConfig(**changes), size)
    assert said in str(raised.value)


@pytest.mark.parametrize("changes", [{"width": 0}, {"layers": 0}, {"norm": "layer"}])
def test_impossible_critic_is_one_clear_line(changes: dict[str, Any]) -> None:
    """The same for the critic."""
    with pytest.raises(ModelError, match=rf"^critic.{next(iter(changes))}=[^\n]+$"):
        CriticConfig(**changes)
