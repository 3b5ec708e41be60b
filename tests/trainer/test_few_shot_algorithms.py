"""If these fail, a few-shot algorithm learns something else than the thesis and its rivals' papers say."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import MicroBatch
from launchers.console import read_config
from models.few_shot.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from models.few_shot.networks import Generator
from trainer.learners import losses
from trainer.learners.differentiable_augmentation import NUMBERS, augment
from trainer.learners.learner import Learner, Setting, Terms
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.runs.registry import algorithm_names
from trainer.tasks.few_shot.algorithms.mine_gan import Pretraining
from trainer.tasks.few_shot.config import FewShotModelConfig, FewShotRunConfig, InnerLoopConfig
from trainer.tasks.few_shot.episode import Draw, Episode, episode_class
from trainer.tasks.few_shot.reptile import Reptile

SHOTS = 3
EPISODES = algorithm_names("few_shot")


def model_of(algorithm: str, **changes: Any) -> FewShotModelConfig:
    return FewShotModelConfig(
        algorithm=algorithm,  # type: ignore[arg-type]
        generator=GeneratorConfig(width=2, latent_size=6),
        encoder=EncoderConfig(width=2, feature_size=4),
        discriminator=DiscriminatorConfig(width=2, spectral_norm=algorithm not in ("figr", "mine_gan")),
        inner=InnerLoopConfig(rounds=2, discriminator_steps=1, generator_steps=2),
        **changes,
    )


def networks_of(algorithm: str) -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return episode_class(model_of(algorithm)).build_networks(model_of(algorithm), 32)


def episode_of(
    model: FewShotModelConfig, networks: dict[str, nn.Module], precision: Any, average_decay: float = 0.0
) -> Episode:
    return episode_class(model)(networks, model, precision, average_decay)


def values_of(terms: Terms) -> dict[str, torch.Tensor]:
    return {name: values for name, (_, values) in terms.items()}


def weighted_sum(terms: Terms) -> torch.Tensor:
    return torch.stack([weight * values.mean() for weight, values in terms.values()]).sum()


def images(seed: int, count: int = SHOTS) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def state_of(networks: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.detach().clone()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def shown(seed: int = 0) -> Iterator[tuple[torch.Tensor, Any]]:
    return itertools.repeat((images(seed), np.arange(SHOTS) + SHOTS * seed))


# Losses


def test_the_relativistic_average_loss_is_that_of_the_definition() -> None:
    real, made = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.3, -0.2, 1.5])
    by_hand = -torch.log(torch.sigmoid(real - made.mean())).mean()
    by_hand = by_hand - torch.log(1 - torch.sigmoid(made - real.mean())).mean()
    torch.testing.assert_close(losses.relativistic_average(real, made).mean(), by_hand)
    assert losses.relativistic_average(real + 5, made).mean() < by_hand  # lower is better for what is preferred
    real.requires_grad_(True)
    losses.relativistic_average(made, real).sum().backward()
    assert real.grad is not None
    assert real.grad.abs().min() > 0  # log(1 - D(real)) leads somewhere


def test_mode_seeking_is_the_reciprocal_of_the_ratio() -> None:
    first, second = images(0), images(1)
    z1, z2 = torch.randn(SHOTS, 6), torch.randn(SHOTS, 6)
    found = losses.mode_seeking(first, second, z1, z2)
    for number in range(SHOTS):
        ratio = (first[number] - second[number]).abs().mean() / (z1[number] - z2[number]).abs().mean()
        assert found[number].item() == pytest.approx(1 / (ratio.item() + 1e-5), rel=1e-5)
    alike = losses.mode_seeking(first, first + 0.1 * (second - first), z1, z2)
    assert (alike > found).all()  # one image for all noise is what costs most
    assert torch.isfinite(losses.mode_seeking(first, first, z1, z2)).all()


def test_the_hinge_is_flat_beyond_its_margins() -> None:
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.5, -0.5])
    torch.testing.assert_close(losses.hinge_discriminator(real, made), torch.tensor([0.0, 2.0, 2.5]))


@pytest.mark.parametrize("form", ["relativistic", "printed"])
def test_the_terms_of_the_encoder_gan_are_equations_34_to_44(form: str) -> None:
    networks = {name: network.eval() for name, network in networks_of("few_shot_meta").items()}
    episode = episode_of(model_of("few_shot_meta", options={"adversarial": form}), networks, "fp32")
    fast = {name: network.eval() for name, network in episode.networks.items()}
    real, draw = images(0), Draw(5, np.arange(SHOTS))
    with torch.no_grad():
        features, z = fast["encoder"](real), [draw.normal("z1", 6), draw.normal("z2", 6)]
        made = [fast["generator"](torch.cat([noise, features], 1)) for noise in z]
        judged, on_made = fast["discriminator"](real), [fast["discriminator"](image) for image in made]
        generator, discriminator = episode.generator_terms(real, draw), episode.discriminator_terms(real, draw)

    def adversarial(preferred: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if form == "printed":  # -log D(preferred) - log(1 - D(other))
            return -preferred.sigmoid().log() - (1 - other.sigmoid()).log()
        return -functional.logsigmoid(preferred - other.mean()) - functional.logsigmoid(preferred.mean() - other)

    expected = {
        "adversarial": (adversarial(on_made[0], judged) + adversarial(on_made[1], judged)) / 2,
        "encoder": sum((real - image).abs().mean(dim=(1, 2, 3)) for image in made) / 2,
        "mode_seeking": losses.mode_seeking(*made, *z),
    }
    torch.testing.assert_close(values_of(generator), expected, rtol=1e-4, atol=1e-5)
    both = (adversarial(judged, on_made[0]) + adversarial(judged, on_made[1])) / 2
    torch.testing.assert_close(values_of(discriminator), {"discriminator": both}, rtol=1e-4, atol=1e-5)
    whole = sum(term.mean() for term in values_of(generator).values())
    torch.testing.assert_close(weighted_sum(generator), whole)  # lambda_En = lambda_MSR = 1


def test_the_terms_on_a_classifiers_features_are_hinge_losses_and_distances_of_its_maps() -> None:
    options = {"augment": ["translation"], "encoder": 3.0, "perceptual": 2.0, "mode_seeking": 0.5}
    networks = {name: network.eval() for name, network in networks_of("few_shot_projected").items()}
    episode = episode_of(model_of("few_shot_projected", options=options), networks, "fp32")
    fast: dict[str, Any] = {name: network.eval() for name, network in episode.networks.items()}
    real, draw = images(0), Draw(5, np.arange(SHOTS))

    def score(name: str, shown: torch.Tensor) -> torch.Tensor:
        changed = augment(shown, draw.uniform(name, NUMBERS), ["translation"])
        scores: torch.Tensor = fast["discriminator"](changed, torch.zeros(SHOTS, dtype=torch.int64))
        return scores

    with torch.no_grad():
        features, z = fast["encoder"](real), [draw.normal("z1", 6), draw.normal("z2", 6)]
        made = [fast["generator"](torch.cat([noise, features], 1)) for noise in z]
        judged, on_made = score("real", real), [score(f"z{number}", made[number - 1]) for number in (1, 2)]
        seen = zip(fast["discriminator"].maps(real), fast["discriminator"].maps(made[0]), strict=True)
        apart = [(a - b).abs().mean((1, 2, 3)) / a.abs().mean((1, 2, 3)) for a, b in seen]
        generator, discriminator = episode.generator_terms(real, draw), episode.discriminator_terms(real, draw)
    assert judged.shape == (SHOTS, 3)  # of the pixels and of maps of 8 and 4 pixels
    hinge = sum((1 - judged).relu().mean(1) + (1 + each).relu().mean(1) for each in on_made) / 2
    torch.testing.assert_close(values_of(discriminator), {"discriminator": hinge}, rtol=1e-4, atol=1e-5)
    expected = {
        "adversarial": -sum(each.mean(1) for each in on_made) / 2,
        "encoder": sum((real - image).abs().mean(dim=(1, 2, 3)) for image in made) / 2,
        "perceptual": sum(apart) / len(apart),
        "mode_seeking": losses.mode_seeking(*made, *z),
    }
    torch.testing.assert_close(values_of(generator), expected, rtol=1e-4, atol=1e-5)
    assert [weight for weight, _ in generator.values()] == [1.0, 3.0, 2.0, 0.5]


@pytest.mark.parametrize("algorithm", ["figr", "mine_gan"])
def test_a_wasserstein_critic_is_penalised_between_real_and_generated(algorithm: str) -> None:
    episode = episode_of(model_of(algorithm), networks_of(algorithm), "fp32")
    for network in episode.networks.values():
        network.eval()
    real, draw = images(0), Draw(5, np.arange(SHOTS))
    both = episode.discriminator_terms(real, draw)
    terms = values_of(both)
    with torch.no_grad():
        noise = draw.normal("z", 6)
        made = episode.networks["generator"](episode.networks["miner"](noise) if algorithm == "mine_gan" else noise)
    critic = episode.networks["discriminator"]
    torch.testing.assert_close(terms["discriminator"], critic(made) - critic(real), rtol=1e-4, atol=1e-5)
    for number, share in enumerate(draw.uniform("penalty", 1)[:, 0]):
        between = (share * real[number] + (1 - share) * made[number])[None].float().requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(between).sum(), between)
        assert terms["penalty"][number].item() == pytest.approx((slope.norm().item() - 1) ** 2, rel=1e-3)
    assert weighted_sum(both).item() == pytest.approx(
        terms["discriminator"].mean().item() + 10 * terms["penalty"].mean().item(), rel=1e-5
    )


def test_the_rivals_from_scratch_judge_what_was_augmented() -> None:
    draw, real = Draw(5, np.arange(SHOTS)), images(0)
    for algorithm, changes in (
        ("fast_gan", ("colour", "translation")),
        ("diff_augment", ("colour", "translation", "cutout")),
    ):
        episode = episode_of(model_of(algorithm), networks_of(algorithm), "fp32")
        for network in episode.networks.values():
            network.eval()
        critic, generator = episode.networks["discriminator"], episode.networks["generator"]
        terms = values_of(episode.discriminator_terms(real, draw))
        wanted = values_of(episode.generator_terms(real, draw))["adversarial"]
        seen = augment(real, draw.uniform("real", NUMBERS), changes)  # type: ignore[arg-type]
        made = augment(generator(draw.normal("z", 6)), draw.uniform("generated", NUMBERS), changes)  # type: ignore[arg-type]
        if algorithm == "fast_gan":
            expected = functional.relu(1 - critic(seen)) + functional.relu(1 + critic(made))
            torch.testing.assert_close(wanted, -critic(made))
            decoded = episode.networks["decoder"](critic.features(seen))
            smaller = functional.avg_pool2d(seen, 2)
            torch.testing.assert_close(terms["reconstruction"], (smaller - decoded).abs().mean(dim=(1, 2, 3)))
        else:
            expected = functional.softplus(-critic(seen)) + functional.softplus(critic(made))
            torch.testing.assert_close(wanted, functional.softplus(-critic(made)))
        torch.testing.assert_close(terms["discriminator"], expected)


# Episodes


@pytest.mark.parametrize("algorithm", sorted(EPISODES))
def test_fast_weights_learn_and_leave_the_others_alone(algorithm: str) -> None:
    networks = networks_of(algorithm)
    before = state_of(networks)
    episode = episode_of(model_of(algorithm), networks, "fp32")
    for number in range(2):
        terms = episode.run_round(shown(), 0, number, 2)
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.equal(value, before[name]) for name, value in state_of(networks).items())
    learned = dict(itertools.chain(*(network.named_parameters() for network in episode.networks.values())))
    assert learned
    for name, network in episode.networks.items():
        for key, parameter in network.named_parameters():
            same = torch.equal(parameter, before[f"{name}.{key}"])
            # A pretrained classifier in a discriminator stays; a bias before a batch norm, say, has no gradient.
            assert same != parameter.requires_grad or key.endswith("bias"), f"{name}.{key}"


@pytest.mark.parametrize("algorithm", sorted(EPISODES))
def test_half_precision_is_of_the_computation_alone(algorithm: str) -> None:
    episode = episode_of(model_of(algorithm), networks_of(algorithm), "bf16")
    full = episode_of(model_of(algorithm), networks_of(algorithm), "fp32")
    half_terms, full_terms = (each.run_round(shown(), 0, 1, 2) for each in (episode, full))
    for name, term in full_terms.items():
        assert half_terms[name].dtype == torch.float32
        assert half_terms[name].item() == pytest.approx(term.item(), rel=0.1, abs=0.05)
        assert half_terms[name].item() != term.item() or name == "penalty"
    assert {value.dtype for value in state_of(episode.networks).values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("algorithm", sorted(EPISODES))
def test_a_move_changes_one_side_only(algorithm: str) -> None:
    """The first move of the round is the discriminator's; the images of the second never come."""
    episode = episode_of(model_of(algorithm), networks_of(algorithm), "fp32")
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in episode.networks.items()}
    with pytest.raises(StopIteration):
        episode.run_round(iter([next(shown())]), 0, 1, 2)
    for name, network in episode.networks.items():
        moved = any(not torch.equal(p, q) for p, q in zip(network.parameters(), before[name], strict=True))
        assert moved == (name in type(episode).discriminators), name


def test_an_episode_goes_on_from_its_state_to_the_same_bits() -> None:
    model = model_of("few_shot_meta")
    one = episode_of(model, networks_of("few_shot_meta"), "fp32", average_decay=0.9)
    one.run_round(shown(), 0, 0, 2)
    two = episode_of(model, networks_of("few_shot_meta"), "fp32", average_decay=0.9)
    for name, learner in two.learners.items():
        learner.load_state_dict(copy.deepcopy(one.learners[name].state_dict()))
    for episode in (one, two):
        episode.run_round(shown(), 0, 1, 2)
    found, expected = state_of(two.networks), state_of(one.networks)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    averages = state_of(two.averages)
    assert all(torch.equal(value, averages[name]) for name, value in state_of(one.averages).items())
    assert any(not torch.equal(value, expected[name]) for name, value in averages.items())


def test_the_miner_learns_before_its_generator() -> None:
    networks = networks_of("mine_gan")
    episode = episode_of(model_of("mine_gan"), networks, "fp32")
    before = state_of(networks)

    def moved() -> set[str]:
        now = state_of(episode.networks)
        return {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}

    episode.run_round(shown(), 0, 0, 4)
    episode.run_round(shown(), 0, 1, 4)
    assert moved() == {"miner", "discriminator"}
    episode.run_round(shown(), 0, 2, 4)
    assert moved() == {"miner", "discriminator", "generator"}


def test_what_is_drawn_depends_on_the_position_alone() -> None:
    whole, part = Draw(9, np.arange(6)), Draw(9, np.arange(2, 4))
    assert torch.equal(whole.normal("z", 5)[2:4], part.normal("z", 5))
    assert not torch.equal(whole.normal("z1", 5), whole.normal("z2", 5))
    assert (whole.uniform("penalty", 1)[2:4] == part.uniform("penalty", 1)).all()


# The outer loop


def batches_of(*seeds: int) -> Any:
    """One global batch, in two micro-batches that cut through an episode."""
    joined = torch.cat([images(seed) for seed in seeds])
    positions = np.concatenate([np.arange(SHOTS) + SHOTS * seed for seed in seeds])
    labels = torch.zeros(len(joined), dtype=torch.int64)
    cuts = slice(0, 2), slice(2, None)
    parts = [MicroBatch(joined[cut], labels[cut], positions[cut], positions[cut], 0, 2) for cut in cuts]
    return {"train": iter([parts])}


def reptile_of(rate: float) -> Reptile:
    plain = OptimizerConfig(
        name="sgd", learning_rate=rate, weight_decay=0, momentum=0, schedule="constant", warmup=0, clip_norm=None
    )
    model = model_of("few_shot_meta", optimizer=plain)
    setting = Setting("fp32", 4, global_batch=SHOTS, seed=7)
    networks = networks_of("few_shot_meta")
    return Reptile(episode_class(model), FewShotRunConfig(model=model, shots=SHOTS), networks, setting)


def came_to(seed: int) -> dict[str, nn.Module]:
    """W: the fast weights at the end of the episode on these images, played by hand."""
    episode: Episode = episode_of(model_of("few_shot_meta"), networks_of("few_shot_meta"), "fp32")
    for number in range(2):
        episode.run_round(shown(seed), derive_key(7, "episode"), number, 2)
    return episode.networks


def test_the_outer_gradient_is_theta_minus_w(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, theta, fast = reptile_of(0.25), networks_of("few_shot_meta"), came_to(0)
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    move = Learner.step

    def noting(learner: Learner) -> torch.Tensor:
        found = {key: p.grad.clone() for key, p in learner.module.named_parameters() if p.grad is not None}
        gradients[learner.name] = found
        return move(learner)

    monkeypatch.setattr(Learner, "step", noting)
    result = algorithm.step(batches_of(0), detailed=False)
    for name, network in theta.items():
        learned = dict(fast[name].named_parameters())
        for key, before in network.named_parameters():
            assert torch.equal(gradients[name][key], before.detach() - learned[key].detach())
            after = dict(algorithm.learners[name].module.named_parameters())[key]
            torch.testing.assert_close(after, before + 0.25 * (learned[key] - before), rtol=1e-6, atol=1e-8)
        norm = torch.cat([gradient.flatten() for gradient in gradients[name].values()]).norm()
        torch.testing.assert_close(result.norms[f"gradient_norm/{name}"], norm)


def test_the_outer_gradient_is_the_mean_over_episodes_and_so_are_the_buffers() -> None:
    algorithm, theta, both = reptile_of(1.0), networks_of("few_shot_meta"), [came_to(0), came_to(1)]
    before = state_of(theta)
    algorithm.step(batches_of(0, 1), detailed=False)
    buffers = 0
    for name, learner in algorithm.learners.items():
        ends = [fast[name].state_dict() for fast in both]
        for key, value in learner.module.state_dict().items():
            mean = (ends[0][key].double() + ends[1][key].double()) / 2
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-7)
        for key, buffer in learner.module.named_buffers():
            buffers += 1
            assert not torch.equal(buffer, before[f"{name}.{key}"]), key
    assert buffers > 10


def test_pretraining_moves_each_learner_by_its_own_loss() -> None:
    plain = OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0, schedule="constant", warmup=0)
    networks = networks_of("mine_gan")
    before = state_of(networks)
    config = FewShotRunConfig(model=model_of("mine_gan", optimizer=plain))
    algorithm = Pretraining(config, networks, Setting("fp32", 4, global_batch=SHOTS))
    generator, discriminator = algorithm.learners["generator"], algorithm.learners["discriminator"]
    result = algorithm.step(batches_of(0), detailed=False)
    assert {"discriminator", "penalty", "adversarial"} == result.sums.keys()
    assert (generator.steps, discriminator.steps) == (1, 1)
    after = state_of(networks)
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"generator", "discriminator"}


# Settings


def test_the_outer_rate_grows_where_there_are_fewer_steps() -> None:
    scaled = model_of("few_shot_meta", rate_for_steps=20_000)
    assert scaled.scaled_optimizer(20_000).learning_rate == pytest.approx(1e-5)
    assert scaled.scaled_optimizer(40_000).learning_rate == pytest.approx(1e-5)
    assert scaled.scaled_optimizer(2_000).learning_rate == pytest.approx(1e-4)
    assert scaled.scaled_optimizer(2).learning_rate == pytest.approx(2e-4)
    assert model_of("few_shot_meta").scaled_optimizer(2).learning_rate == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InnerLoopConfig(rounds=0), r"model\.inner\.rounds=0"),
        (lambda: InnerLoopConfig(betas=[0.5]), r"model\.inner\.betas"),
        (lambda: FewShotModelConfig(rate_for_steps=0), r"model\.rate_for_steps=0"),
    ],
)
def test_values_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_algorithm_that_is_not_meta_trained_does_not_go_without() -> None:
    with pytest.raises(UserError, match=r"model\.meta=false: fast_gan is not meta-trained"):
        episode_class(FewShotModelConfig(algorithm="fast_gan", meta=False))


@pytest.mark.parametrize(
    ("model", "millions"), [("figr", 11.5), ("fast_gan", 7.6), ("diff_augment", 13.4), ("mine_gan", 10.2)]
)
def test_rivals_have_the_parameters_of_table_22(model: str, millions: float) -> None:
    config = read_config(FewShotRunConfig, "train_few_shot_gan", ["shards=data", "run=run", f"model={model}"])
    with torch.device("meta"):
        generator = Generator(config.model.generator, config.model.generator.latent_size, 128)
    assert sum(each.numel() for each in generator.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_fast_gan_reconstructs_by_lpips_where_its_weights_are_named(tmp_path: Path) -> None:
    """A file of the published names and shapes."""
    torch.manual_seed(0)
    backbone = torchvision.models.alexnet(weights=None).features
    path = tmp_path / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in backbone.state_dict().items()}, path)
    networks, draw = networks_of("fast_gan"), Draw(5, np.arange(SHOTS))
    plain = episode_of(model_of("fast_gan"), networks, "fp32").discriminator_terms(images(0), draw)
    model = model_of("fast_gan", options={"lpips_weights": str(path)})
    episode = episode_of(model, networks, "fp32")
    weight, found = episode.discriminator_terms(images(0), draw)["reconstruction"]
    assert (weight, found.shape) == (1.0, (SHOTS,))
    assert not torch.allclose(found, plain["reconstruction"][1])
    found.sum().backward()
    gradients = [each.grad for each in episode.networks["decoder"].parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    absent = episode_of(model_of("fast_gan", options={"lpips_weights": str(tmp_path / "absent.pth")}), networks, "fp32")
    with pytest.raises(UserError, match=r"absent\.pth: no such file: give AlexNet's weights"):
        absent.discriminator_terms(images(0), draw)
