"""If these fail, an algorithm minimises something else than the equation it names."""

import pytest
import torch
from torch import nn

from models.conditional.config import CriticConfig as ScoreCriticConfig
from models.conditional.networks import build_critic as build_score_critic
from models.few_shot.config import DiscriminatorConfig
from models.few_shot.networks import Discriminator
from models.stain.build import build_critic
from models.stain.config import CriticConfig
from trainer.learners import losses
from trainer.learners.choices import PenaltyMetric


def make_critic(kind: str = "stain") -> nn.Module:
    torch.manual_seed(3)
    if kind == "conditional":
        critic: nn.Module = build_score_critic(ScoreCriticConfig(width=8, hidden=8, blocks=[1, 1, 1]), 32)
    elif kind == "few-shot":
        critic = Discriminator(DiscriminatorConfig(width=4, spectral_norm=False), 32)
    else:
        critic = build_critic(CriticConfig(width=8, layers=2), 32)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.3)
    return critic


def images(seed: int, count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def penalty_by_hand(
    critic: nn.Module, real: torch.Tensor, generated: torch.Tensor, points: torch.Tensor, per_pixel: bool
) -> torch.Tensor:
    """Image by image, from the definition: mean map, its slope, the slope's length, its distance from one."""
    total = torch.zeros(())
    for one_real, one_generated, point in zip(real, generated, points, strict=True):
        between = (point * one_real + (1 - point) * one_generated)[None].detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(between).mean(), between, create_graph=True)
        length = slope.pow(2).sum().sqrt() * (between.numel() ** 0.5 if per_pixel else 1.0)
        total = total + (length - 1) ** 2
    return total


@pytest.mark.parametrize("kind", ["stain", "conditional", "few-shot"])
@pytest.mark.parametrize("metric", ["euclidean", "root_mean_square"])
def test_the_penalty_and_its_gradients_are_those_of_the_definition(kind: str, metric: PenaltyMetric) -> None:
    critic, real, generated, points = make_critic(kind), images(0), images(1), torch.tensor([0.1, 0.9, 0.5, 0.3])
    ours = losses.gradient_penalty(critic, real, generated, points, metric).sum()
    gradients = torch.autograd.grad(ours, list(critic.parameters()), allow_unused=True)
    by_hand = penalty_by_hand(critic, real, generated, points, metric == "root_mean_square")
    expected = torch.autograd.grad(by_hand, list(critic.parameters()), allow_unused=True)
    torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(gradients, expected, strict=True):
        if found is None:  # no part in the slope: a bias, say, for which the definition gives zeros
            assert wanted is None or not wanted.any()
        else:
            # Rounding may put a pixel on the other side of a rectifier's bend: the whole gradient is what counts.
            assert wanted is not None
            assert (found - wanted).norm() <= 1e-4 * wanted.norm()


def test_no_loss_scale_and_no_autocast_changes_the_penalty() -> None:
    critic, real, generated, points = make_critic(), images(0), images(1), torch.full((4,), 0.5)

    def gradients(scale: float) -> list[torch.Tensor]:
        loss = losses.gradient_penalty(critic, real, generated, points).sum()
        found = torch.autograd.grad(loss * scale, list(critic.parameters()), allow_unused=True)
        return [gradient / scale for gradient in found if gradient is not None]

    expected = gradients(1.0)
    for exponent in (8, 12, 16):
        assert all(map(torch.equal, gradients(2.0**exponent), expected))  # powers of two round nothing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, gradients(2.0**16), expected))


def test_a_per_pixel_slope_pulls_alike_at_every_resolution() -> None:
    """A critic of the mean intensity has the same penalty at 16 and at 64 pixels, in the per-pixel metric only."""

    def penalty(size: int, metric: PenaltyMetric) -> float:
        flat = torch.zeros(1, 3, size, size)
        return losses.gradient_penalty(lambda x: x.mean(1, keepdim=True), flat, flat, torch.ones(1), metric).item()

    assert penalty(16, "root_mean_square") == pytest.approx(penalty(64, "root_mean_square"), abs=1e-6)
    assert penalty(16, "root_mean_square") == pytest.approx(0.0, abs=1e-6)
    assert abs(penalty(16, "euclidean") - penalty(64, "euclidean")) > 0.01


def test_each_term_is_one_number_per_image() -> None:
    first, second = images(0), images(1)
    differences = torch.stack([(a - b).abs().mean() for a, b in zip(first, second, strict=True)])
    for term in (losses.cycle_consistency, losses.identity, losses.reconstruction):
        torch.testing.assert_close(term(first, second), differences)
    maps = torch.tensor([[[[0.0, 2.0]]], [[[1.0, 1.0]]]])
    torch.testing.assert_close(losses.score(maps), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(losses.least_squares(maps, 1.0), torch.tensor([1.0, 0.0]))
    by_hand = torch.stack([nn.functional.softplus(-each).mean() for each in maps])
    torch.testing.assert_close(losses.cross_entropy_of_patches(maps, 1.0), by_hand)
    real, fake = torch.tensor([2.0]), torch.tensor([5.0])
    assert losses.wasserstein_critic(real, fake).item() == 3.0  # lower is better: real above generated
    assert losses.wasserstein_generator(fake).item() == -5.0
