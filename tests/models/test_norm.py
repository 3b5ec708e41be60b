"""If these fail, a run with other normalisation layers loses its pretrained weights, or cannot be read again."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from models.classifiers.norm import auxiliary_batch_norms, of_real_images
from models.errors import ModelError
from tests.models.test_classifier_weights import SMALL, write
from trainer.tasks.classification.config import ClassifierFitConfig, ClassifierRunConfig, SyntheticConfig

SENET = dataclasses.replace(SMALL, dropout=0.0)
# Its batch norms have activations in them.
TIMM = ClassifierConfig(name="timm", architecture="timm", timm_name="test_efficientnet", dropout=0.0)
BOTH = pytest.mark.parametrize("config", [SENET, TIMM], ids=["senet", "timm"])
IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def started(config: ClassifierConfig, tmp_path: Path) -> tuple[nn.Module, ClassifierConfig]:
    """A network whose running statistics and affine weights are not the initial ones, and a start from its file."""
    torch.manual_seed(0)
    network = build_classifier(config, 3)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
        network.train()(IMAGES)
    return network.eval(), dataclasses.replace(config, weights=write(network, tmp_path / "a.safetensors"))


@BOTH
def test_group_norms_take_the_batch_norms_weights(started: tuple[nn.Module, ClassifierConfig], tmp_path: Path) -> None:
    """And an image's answer does not depend on the others in its batch, in training neither."""
    plain, start = started
    network = build_classifier(dataclasses.replace(start, norm="group"), 3).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(network(IMAGES)[:1], network(IMAGES[:1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network(IMAGES), network.eval()(IMAGES))
    again = write(network, tmp_path / "group.safetensors")  # as another run's weights
    build_classifier(dataclasses.replace(start, norm="group", weights=again), 3)


@BOTH
def test_frozen_batch_norms_compute_in_training_as_the_pretrained_network_in_use(
    started: tuple[nn.Module, ClassifierConfig],
) -> None:
    plain, start = started
    network = build_classifier(dataclasses.replace(start, norm="frozen"), 3).train()
    torch.testing.assert_close(network(IMAGES), plain(IMAGES))
    network(IMAGES).sum().backward()
    assert all(weight.grad is not None for weight in network.parameters()), "the affine weights learn"
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_a_checkpoint_is_read_by_the_same_settings(
    started: tuple[nn.Module, ClassifierConfig], norm: str, config: ClassifierConfig
) -> None:
    trained = build_classifier(dataclasses.replace(started[1], norm=norm), 3).eval()  # type: ignore[arg-type]
    read = build_classifier(dataclasses.replace(config, norm=norm), 3).eval()  # type: ignore[arg-type]
    read.load_state_dict(trained.state_dict())
    torch.testing.assert_close(read(IMAGES), trained(IMAGES), rtol=0, atol=0)


@BOTH
def test_generated_images_have_statistics_of_their_own(
    started: tuple[nn.Module, ClassifierConfig], config: ClassifierConfig
) -> None:
    """In training two networks in one: each part of the batch as the plain network would take it alone."""
    plain, start = started
    network = build_classifier(dataclasses.replace(start, norm="auxiliary"), 3).train()
    for norm in auxiliary_batch_norms(network):
        norm.generated_images = 3
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    both = network(images)
    both.square().sum().backward()
    parts = [copy.deepcopy(plain).train() for _ in range(2)]
    alone = [part(some) for part, some in zip(parts, images.split([5, 3]), strict=True)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)
    torch.cat(alone).square().sum().backward()
    norms = [[each for each in part.modules() if isinstance(each, nn.BatchNorm2d)] for part in parts]
    for found, real, generated in zip(auxiliary_batch_norms(network), *norms, strict=True):
        for mine, expected in ((found, real), (found.generated, generated)):
            for name in ("running_mean", "running_var"):
                torch.testing.assert_close(getattr(mine, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
            assert mine.weight.grad is not None
            torch.testing.assert_close(mine.weight.grad, expected.weight.grad, rtol=1e-3, atol=1e-4)
    read = build_classifier(config, 3).eval()
    read.load_state_dict(of_real_images(network.state_dict()))
    torch.testing.assert_close(read(images), network.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("generated", [0, 1, 3, 4])
def test_a_part_too_small_for_statistics_takes_the_running_ones(generated: int) -> None:
    """Every weight has a gradient whatever the batch holds, or two processes wait for each other."""
    network = build_classifier(dataclasses.replace(SENET, norm="auxiliary"), 3).train()
    norms = auxiliary_batch_norms(network)
    for norm in norms:
        norm.generated_images = generated
    network(IMAGES).sum().backward()
    assert all(weights.grad is not None for weights in network.parameters())
    assert bool(norms[0].running_mean.any()) == (4 - generated > 1)
    assert bool(norms[0].generated.running_mean.any()) == (generated > 1)


def test_what_cannot_be_is_refused() -> None:
    transformer = ClassifierConfig(architecture="timm", timm_name="test_vit", norm="group", dropout=0.0)
    with pytest.raises(ModelError, match=r"^model.norm=group: this network has no batch norm to replace"):
        build_classifier(transformer, 3)
    with pytest.raises(ValueError, match=r"^model.norm=frozen keeps the running statistics of initial weights: give"):
        ClassifierRunConfig(model=ClassifierConfig(norm="frozen"))
    apart = ClassifierConfig(norm="auxiliary")
    for train, words in ((ClassifierFitConfig(mixup=0.2), "no mixup"), (ClassifierFitConfig(compile=True), "compile")):
        with pytest.raises(ValueError, match=f"^model.norm=auxiliary: .*{words}"):
            ClassifierRunConfig(model=apart, train=train)
    fitted = ClassifierConfig(name="frozen", architecture="frozen", timm_name="test_efficientnet")
    with pytest.raises(ValueError, match=r"^model=frozen is fitted at once: .* train.synthetic"):
        ClassifierRunConfig(model=fitted, train=ClassifierFitConfig(synthetic=SyntheticConfig(until=0.5)))
    for field, value in (("until", -0.1), ("replace", 1.5), ("weight", 2.0)):
        with pytest.raises(ValueError, match=rf"^train.synthetic.{field}={value}: must be at least 0 and at most 1"):
            SyntheticConfig(**{field: value})
