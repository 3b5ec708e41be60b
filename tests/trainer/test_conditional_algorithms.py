"""If these fail, a learner learns something else than its equation says, or moves another learner's weights."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.randomness import derive_key, normal, uniform
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import MicroBatch
from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig
from trainer.learners import losses
from trainer.learners.learner import Setting
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.runs.registry import algorithm_class, algorithm_names
from trainer.tasks.conditional.algorithm import ConditionalAlgorithm
from trainer.tasks.conditional.algorithms.info_gan import InfoGan, codes_of_types
from trainer.tasks.conditional.config import ConditionalModelConfig, ConditionalRunConfig

ALGORITHMS = algorithm_names("conditional")
WITH_CLASSIFIER = ("c_wgan_gp", "c_wgan_gp_thesis")
FIXED = ("classifier.", "mixed.", "smoothed.")  # of the projected critic
SIZE, LATENTS, TYPES, SEED = 8, 5, 3, 11
# Plain descent at rate 1: what the weights lose is the gradient.
DESCENT = OptimizerConfig(
    name="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0, clip_norm=None
)


def make_algorithm(
    name: str, *, norm: Any = "none", critic_steps: int = 1, total_steps: int = 3
) -> ConditionalAlgorithm:
    model = ConditionalModelConfig(
        algorithm=name,
        generator=GeneratorConfig(width=4, latent_size=LATENTS, blocks=[1, 1, 1], norm=norm),
        critic=CriticConfig(width=4, hidden=6, blocks=[1, 1, 1], norm="none" if "wgan" in name else norm),
        classifier=ClassifierConfig(width=4, hidden=6, blocks=[1, 1, 1], norm=norm),
        critic_steps=critic_steps,
        generator_optimizer=DESCENT,
        critic_optimizer=DESCENT,
        classifier_optimizer=DESCENT,
    )
    torch.manual_seed(1)
    config = ConditionalRunConfig(model=model, data=StreamConfig(image_size=SIZE))
    setting = Setting("fp32", total_steps, global_batch=6, seed=SEED)
    algorithm: ConditionalAlgorithm = algorithm_class("conditional", name)(config, TYPES, setting)
    return algorithm


def make_batch(number: int, labels: Sequence[int] = (0, 1, 2, 2, 0, 1)) -> MicroBatch:
    images = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(number)) * 2 - 1
    return MicroBatch(images, torch.tensor(labels), np.arange(6), 6 * number + np.arange(6), number, 1)


def cut(batch: MicroBatch) -> list[MicroBatch]:
    """The batch as two micro-batches of unequal size."""
    return [
        MicroBatch(batch.images[s], batch.labels[s], batch.rows[s], batch.positions[s], batch.batch, 2)
        for s in (slice(0, 4), slice(4, 6))
    ]


def run_step(algorithm: ConditionalAlgorithm, *batches: Sequence[MicroBatch]) -> dict[str, float]:
    given: Iterator[Sequence[MicroBatch]] = iter(batches)
    result = algorithm.step({"train": given}, detailed=False)
    assert next(given, None) is None, "takes says how many batches a step takes"
    return {name: value.item() for name, value in result.sums.items()}


def weights_of(algorithm: ConditionalAlgorithm) -> dict[str, Tensor]:
    """Each learner's weights, as one vector."""
    return {
        name: torch.cat([weights.detach().flatten() for weights in trainable(learner.module)])
        for name, learner in algorithm.learners.items()
    }


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """All weights but those that never learn."""
    return [weights for name, weights in network.named_parameters() if not name.startswith(FIXED)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_learner_moves_only_its_own_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make_algorithm(name, critic_steps=2)
    order = []

    def watch(mover: str, move: Callable[[], Tensor]) -> Tensor:
        for other, learner in algorithm.learners.items():
            for parameter in trainable(learner.module):
                assert (parameter.grad is not None) == (other == mover), f"{mover}'s move reached {other}"
        before = weights_of(algorithm)
        norm = move()
        moved = [learner for learner, after in weights_of(algorithm).items() if not torch.equal(after, before[learner])]
        assert moved == [mover]
        order.append(mover)
        return norm

    for mover, learner in algorithm.learners.items():
        monkeypatch.setattr(learner, "step", lambda mover=mover, move=learner.step: watch(mover, move))
    run_step(algorithm, [make_batch(0)], [make_batch(1)])
    assert algorithm.takes == {"train": 2}
    assert order == ["critic", "critic", *(["classifier"] if name in WITH_CLASSIFIER else []), "generator"]
    assert all(
        parameter.requires_grad for learner in algorithm.learners.values() for parameter in trainable(learner.module)
    )


def latents(batch: MicroBatch, purpose: str) -> Tensor:
    return torch.from_numpy(normal(derive_key(SEED, "latent", purpose), batch.positions, LATENTS)).float()


def codes(batch: MicroBatch, purpose: str) -> Tensor:
    draws = uniform(derive_key(SEED, "code", purpose), batch.positions, 1)[:, 0]
    return torch.tensor([int(draw * TYPES) for draw in draws])


def critic_loss(name: str, networks: dict[str, nn.Module], batch: MicroBatch) -> Tensor:
    """The mean over the images of what the critic minimises, image by image and from the definitions."""
    critic = networks["critic"]
    conditions = codes(batch, "critic") if name == "info_gan" else batch.labels
    fakes = networks["generator"](latents(batch, "critic"), conditions).detach()
    points = uniform(derive_key(SEED, "penalty"), batch.positions, 1)[:, 0]
    total = torch.zeros(())
    for number in range(len(fakes)):
        one = slice(number, number + 1)
        real, fake, label = batch.images[one], fakes[one], batch.labels[one]
        on_real, on_fake = critic(real, types=label)[0], critic(fake, types=label)[0]
        if "wgan" in name:
            point = float(points[number])
            between = (point * real + (1 - point) * fake).requires_grad_(True)
            (slope,) = torch.autograd.grad(critic(between, types=label).sum(), between, create_graph=True)
            total = total + on_fake[0] - on_real[0] + 10 * (slope.norm() - 1) ** 2
            continue
        if name == "projected_gan":
            total = total + ((1 - on_real).relu() + (1 + on_fake).relu()).mean()
            continue
        total = total - on_real[0].sigmoid().log() - (1 - on_fake[0].sigmoid()).log()
        if name == "ac_gan":
            total = total - on_real[1:].log_softmax(0)[label] - on_fake[1:].log_softmax(0)[label]
        if name == "info_gan":
            total = total - on_fake[1:].log_softmax(0)[conditions[number]]
    return total.sum() / len(fakes)


def generator_loss(name: str, networks: dict[str, nn.Module], batch: MicroBatch, weight: float) -> Tensor:
    conditions = codes(batch, "generator") if name == "info_gan" else batch.labels
    fakes = networks["generator"](latents(batch, "generator"), conditions)
    answers = networks["critic"](fakes, types=batch.labels)
    if name == "projected_gan":
        return -answers.mean()
    if "wgan" not in name:
        loss = -answers[:, 0].sigmoid().log().mean()
        return loss + functional.cross_entropy(answers[:, 1:], conditions) if name[:4] in ("ac_g", "info") else loss
    loss = -answers.mean()
    if name in WITH_CLASSIFIER:
        loss = loss + weight * functional.cross_entropy(networks["classifier"](fakes), conditions)
    return loss


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_learners_gradient_is_that_of_its_equations(name: str) -> None:
    algorithm, batch = make_algorithm(name), make_batch(4)
    algorithm.learners["generator"].steps = 1  # the middle of three: lambda is 0.55
    before = {learner: copy.deepcopy(each.module) for learner, each in algorithm.learners.items()}
    start = weights_of(algorithm)
    run_step(algorithm, [batch])
    lost = {learner: start[learner] - after for learner, after in weights_of(algorithm).items()}
    # The classifier and the generator move after the critic.
    moved = {learner: copy.deepcopy(each.module) for learner, each in algorithm.learners.items()} | {
        "generator": before["generator"]
    }
    expected = {"critic": gradient(critic_loss(name, before, batch), before["critic"])}
    weight = 1.0 if name == "c_wgan_gp_thesis" else 0.55
    expected["generator"] = gradient(generator_loss(name, moved, batch, weight), before["generator"])
    if name in WITH_CLASSIFIER:
        answer = functional.cross_entropy(before["classifier"](batch.images), batch.labels)
        if name == "c_wgan_gp_thesis":  # table 12: the classifier sees G(z, C) too
            fakes = before["generator"](latents(batch, "classifier"), batch.labels).detach()
            answer = answer + functional.cross_entropy(before["classifier"](fakes), batch.labels)
        expected["classifier"] = gradient(answer, before["classifier"])
    assert lost.keys() == expected.keys()
    for learner, wanted in expected.items():
        assert wanted.norm() > 0.01, learner
        assert (lost[learner] - wanted).norm() < 2e-4 * wanted.norm(), learner


def gradient(loss: Tensor, network: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, trainable(network), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(weights) if one is None else one).flatten()
            for one, weights in zip(found, trainable(network), strict=True)
        ]
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_batch_cut_into_micro_batches_is_the_same_batch(name: str) -> None:
    """All that is random follows the images' positions; DCGAN's second part lacks one type altogether."""
    whole, parts = make_algorithm(name), make_algorithm(name)
    start, batch = weights_of(whole), make_batch(2, labels=(0, 1, 2, 2, 0, 0))
    run_step(whole, [batch])
    run_step(parts, cut(batch))
    for learner, expected in weights_of(whole).items():
        found = weights_of(parts)[learner]
        assert (found - expected).norm() < 1e-4 * (expected - start[learner]).norm(), learner
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_the_classifiers_weight_rises_from_a_tenth_to_one() -> None:
    algorithm = make_algorithm("c_wgan_gp", total_steps=3)
    assert hasattr(algorithm, "classification_weight")
    found = []
    for number in range(3):
        found.append(algorithm.classification_weight)
        run_step(algorithm, [make_batch(number)])
    assert found == pytest.approx([0.1, 0.55, 1.0])


@pytest.mark.parametrize("name", WITH_CLASSIFIER)
def test_the_classifier_is_in_evaluation_mode_while_the_generator_moves(name: str) -> None:
    algorithm = make_algorithm(name, norm="batch")
    classifier = algorithm.learners["classifier"].module
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    run_step(algorithm, [make_batch(0)])
    parts = 2 if name == "c_wgan_gp_thesis" else 1  # it learns from generated images too
    assert [int(norm.num_batches_tracked) for norm in norms] == [parts] * len(norms)
    run_step(algorithm, [make_batch(1)])
    assert [int(norm.num_batches_tracked) for norm in norms] == [2 * parts] * len(norms)


def test_pairs_of_networks_with_batch_norm_see_their_own_type_only() -> None:
    """Other images of type 0: the networks of the other types move to the same bits."""
    first, second = make_algorithm("dcgan", norm="batch"), make_algorithm("dcgan", norm="batch")
    batch = make_batch(0)
    others = batch.images.clone()
    others[batch.labels == 0] *= -1
    run_step(first, [batch])
    run_step(second, [dataclasses.replace(batch, images=others)])
    for learner in ("generator", "critic"):
        one, two = (algorithm.learners[learner].module.networks for algorithm in (first, second))
        assert isinstance(one, nn.ModuleList)
        assert isinstance(two, nn.ModuleList)
        same = [
            all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
            for a, b in zip(one, two, strict=True)
        ]
        assert same == [False, True, True]


def test_info_gan_learns_from_no_label_and_counts_what_its_codes_stand_for() -> None:
    algorithm, relabelled = make_algorithm("info_gan"), make_algorithm("info_gan")
    assert isinstance(algorithm, InfoGan)
    batch = make_batch(0)
    with torch.no_grad():
        answered = algorithm.learners["critic"].module(batch.images)[:, 1:].argmax(1)
    counted = torch.zeros(TYPES, TYPES, dtype=torch.float64)
    for label, code in zip(batch.labels, answered, strict=True):
        counted[label, code] += 1
    run_step(algorithm, [batch])
    run_step(relabelled, [dataclasses.replace(batch, labels=batch.labels.flip(0))])
    for learner, expected in weights_of(algorithm).items():
        assert torch.equal(weights_of(relabelled)[learner], expected)
    assert torch.equal(algorithm.state_dict()["answers"], counted)
    run_step(algorithm, [make_batch(1)])
    assert algorithm.state_dict()["answers"].sum().item() == pytest.approx(6 * 0.99 + 6)
    algorithm.load_state_dict({"answers": torch.tensor([[5.0, 9, 0], [1, 8, 0], [0, 1, 0]])})
    # Type 0 gives way: most answers are right when type 1 has the code that both like best.
    assert algorithm.conditions == [0, 1, 2]
    assert codes_of_types([[0, 9], [9, 9]]) == [1, 0]


def test_the_new_losses_are_one_number_per_image() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = torch.tensor([2.0, 0.0]).exp().add(1).log() - torch.tensor([2.0, 0.0])
    torch.testing.assert_close(losses.classification(logits, torch.tensor([0, 1])), expected)
    torch.testing.assert_close(losses.cross_entropy_of_source(logits[:, 0], 1.0), expected)
    torch.testing.assert_close(losses.cross_entropy_of_source(logits[:, 0], 0.0), expected + logits[:, 0])
    assert losses.cross_entropy_of_source(torch.tensor([-1e4]), 1.0).item() == 1e4  # no log of zero
