"""If these fail, half precision on a GPU trains another network than full precision does, or none."""

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from data_pipeline.stream.stream import Topology
from models.conditional.config import CriticConfig
from models.conditional.networks import build_critic
from models.few_shot.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from models.stain.build import build_critic as build_stain_critic
from models.stain.config import CriticConfig as StainCriticConfig
from tests.gpu.algorithms import BATCH, BUILD, SIZE, TYPES, noise, overflow, start, weights_of
from trainer.learners import engine, losses
from trainer.learners.choices import Precision
from trainer.learners.topology import autocast
from trainer.runs.registry import algorithm_names
from trainer.tasks.few_shot.config import FewShotModelConfig, InnerLoopConfig
from trainer.tasks.few_shot.episode import episode_class

pytestmark = pytest.mark.gpu

_SMALL_SCALE = 2.0**8


class ScaledOnTheCpu(Accelerator):
    """Where fp16 cannot be: bf16 with a loss scale, so that what handles the scale is tried all the same."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "mixed_precision": "bf16"})
        self.scaler = torch.amp.GradScaler("cpu")


@pytest.fixture
def fp16(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> Precision:
    if topology.device.type == "cuda":
        return "fp16"
    monkeypatch.setattr(engine, "Accelerator", ScaledOnTheCpu)
    return "bf16"


@pytest.mark.parametrize("name", BUILD)
def test_a_step_in_bf16_moves_every_learner(name: str, topology: Topology) -> None:
    if topology.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    running = start(name, "bf16", topology)
    before = {learner: weights_of(one.module) for learner, one in running.algorithm.learners.items()}
    assert all(np.isfinite(value) for value in running.step().values())
    for learner, one in running.algorithm.learners.items():
        after = weights_of(one.module)
        assert torch.isfinite(after).all()
        assert not torch.equal(after, before[learner])


@pytest.mark.parametrize("name", BUILD)
def test_one_learner_s_overflow_in_fp16_is_its_own(name: str, topology: Topology, fp16: Precision) -> None:
    """It moves nothing and halves its scale; the others move and keep theirs. Then it goes on."""
    running = start(name, fp16, topology)
    learners = running.algorithm.learners
    running.step()
    for learner in learners.values():
        # Scales begin so high that the first steps may overflow by themselves.
        learner._engine._accelerator.scaler.update(_SMALL_SCALE)  # type: ignore[attr-defined]
    for overflowing in learners:
        hook = overflow(learners[overflowing].module)
        before = {learner: (weights_of(one.module), one.loss_scale) for learner, one in learners.items()}
        running.step()
        hook.remove()
        for learner, one in learners.items():
            weights, scale = before[learner]
            moved = not torch.equal(weights_of(one.module), weights)
            if learner == overflowing:
                assert one.loss_scale == scale / 2
                assert not moved
            else:
                assert one.loss_scale == scale
                assert moved
    assert all(np.isfinite(value) for value in running.step().values())
    assert all(torch.isfinite(weights_of(one.module)).all() for one in learners.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("algorithm", algorithm_names("few_shot"))
def test_an_episode_learns_in_half_precision(algorithm: str, precision: Precision, topology: Topology) -> None:
    """And where one side's gradients overflow in fp16, the other side learns on."""
    model = FewShotModelConfig(
        algorithm=algorithm,
        generator=GeneratorConfig(width=2, latent_size=6),
        encoder=EncoderConfig(width=2, feature_size=4),
        discriminator=DiscriminatorConfig(width=2, spectral_norm=algorithm not in ("figr", "mine_gan")),
        inner=InnerLoopConfig(rounds=2, discriminator_steps=1, generator_steps=1),
    )
    torch.manual_seed(0)
    kind = episode_class(model)
    networks = {name: network.to(topology.device) for name, network in kind.build_networks(model, SIZE).items()}
    episode = kind(networks, model, precision)
    shown = itertools.repeat((next(noise(topology.device)).images, np.arange(BATCH)))
    sides = {"generators": episode._generators, "discriminators": episode._discriminators}
    for number, overflowing in enumerate([None, *sides] if precision == "fp16" else [None]):
        before = {side: weights_of(learner.module) for side, learner in sides.items()}
        hook = overflow(sides[overflowing].module) if overflowing else None
        terms = episode.run_round(shown, key=7, number=number, rounds=4)
        assert all(torch.isfinite(term) for term in terms.values())
        for side, learner in sides.items():
            assert torch.equal(weights_of(learner.module), before[side]) == (side == overflowing), side
        if hook is not None:
            hook.remove()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["stain", "conditional"])
def test_the_gradient_penalty_under_autocast_is_that_of_fp64(
    kind: str, precision: Precision, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The penalty and its gradient by the critic's weights, relative 1e-4; half precision would miss 1e-3."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions' default on GPUs: 3e-4
    torch.manual_seed(0)
    if kind == "stain":
        critic: Any = build_stain_critic(StainCriticConfig(width=8, layers=2), SIZE, 3)
    else:
        critic = build_critic(CriticConfig(width=8, hidden=8, blocks=[1, 1, 1]), SIZE, shown_classes=TYPES)
    critic = critic.to(device)
    batch, other = itertools.islice(noise(device), 2)
    points = torch.rand(BATCH, device=device)

    def on(labels: torch.Tensor) -> Any:
        return critic if kind == "stain" else functools.partial(critic, types=labels)

    with autocast(precision, device):
        penalty = losses.gradient_penalty(on(batch.labels), batch.images, other.images, points)
    gradient = torch.autograd.grad(penalty.sum(), list(critic.parameters()), allow_unused=True)
    critic.double()
    share = points.double().view(-1, 1, 1, 1)
    between = (share * batch.images.double() + (1 - share) * other.images.double()).requires_grad_(True)
    scores = on(batch.labels)(between).flatten(1).mean(dim=1)
    (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    exact = (slope.flatten(1).norm(dim=1) - 1).square()
    exact_gradient = torch.autograd.grad(exact.sum(), list(critic.parameters()), allow_unused=True)
    assert penalty.dtype == torch.float32
    assert _relative([penalty], [exact]) < 1e-4
    assert _relative(gradient, exact_gradient) < 1e-4


def _relative(found: Any, exact: Any) -> float:
    """|found - exact| / |exact|, over all tensors together; None where the other has none, or zeros."""
    assert all(two is None or not two.any() for one, two in zip(found, exact, strict=True) if one is None)
    pairs = [(one.double(), two.double()) for one, two in zip(found, exact, strict=True) if one is not None]
    error = torch.stack([(one - two).square().sum() for one, two in pairs]).sum().sqrt()
    return float((error / torch.stack([two.square().sum() for _, two in pairs]).sum().sqrt()).detach())
