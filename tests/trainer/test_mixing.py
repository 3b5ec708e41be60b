"""If these fail, mixed images have the wrong labels, or depend on the number of processes."""

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.stream.sampling import rank_slice
from data_pipeline.stream.stream import MicroBatch
from models.classifiers.build import build_classifier
from tests.trainer.test_layer_rates import PLAIN
from tests.trainer.test_network_choices import SENET
from trainer.learners.learner import Setting
from trainer.tasks.classification.algorithms.cross_entropy import CrossEntropy
from trainer.tasks.classification.config import ClassifierFitConfig, ClassifierRunConfig
from trainer.tasks.classification.training.mixing import Mixed, Mixing

SIZE = 24


def global_batch(images: int, number: int = 3) -> MicroBatch:
    """Each image is one constant: its index."""
    pixels = torch.arange(float(images)).view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE)
    rows = np.arange(images)
    return MicroBatch(pixels, torch.arange(images) % 3, rows, rows + number * images, number, 1)


def cut(part: MicroBatch, piece: slice) -> MicroBatch:
    return MicroBatch(part.images[piece], part.labels[piece], part.rows[piece], part.positions[piece], part.batch, 1)


def shares_in(mixed: Mixed) -> torch.Tensor:
    """The share of the image itself in each mixed image, from its pixels."""
    own, partner = torch.arange(float(len(mixed.images))), mixed.partners.float()
    return (mixed.images.mean((1, 2, 3)) - partner) / (own - partner)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_a_label_s_share_is_the_image_s_share(mixup: float, cutmix: float) -> None:
    part = global_batch(64)
    mixed = Mixing(mixup, cutmix, 0, 64)(part)
    assert mixed.partners.tolist() == [index ^ 1 for index in range(64)]
    torch.testing.assert_close(shares_in(mixed), mixed.shares, rtol=0, atol=1e-4)
    assert (mixed.shares >= 0.5).all()
    assert len(mixed.shares.unique()) > 10
    constant = mixed.images.flatten(1).std(1) < 1e-3
    assert (0 < constant.float().mean() < 1) == bool(mixup and cutmix)
    again = Mixing(mixup, cutmix, 0, 64)(global_batch(64, number=4))
    assert not torch.equal(mixed.shares, again.shares), "each batch is mixed anew"


def test_mixing_does_not_depend_on_the_processes() -> None:
    part, mixing = global_batch(24), Mixing(0.4, 1.0, 0, 24)
    whole = mixing(part)
    for ranks in (2, 3, 6):
        pieces = [mixing(cut(part, rank_slice(24, rank, ranks))) for rank in range(ranks)]
        assert torch.equal(torch.cat([piece.images for piece in pieces]), whole.images)
        assert torch.equal(torch.cat([piece.shares for piece in pieces]), whole.shares)
    with pytest.raises(UserError, match=r"a micro-batch of 3 images separates two: choose train\.global_batch"):
        mixing(cut(part, rank_slice(24, 0, 8)))


def test_the_last_image_of_an_odd_batch_stays_as_it_is() -> None:
    part = global_batch(7)
    mixed = Mixing(0.4, 1.0, 0, 7)(part)
    assert torch.equal(mixed.images[6], part.images[6])
    assert (mixed.shares[6], mixed.partners[6]) == (1, 6)


def test_the_loss_of_mixed_images_is_that_of_soft_labels() -> None:
    torch.manual_seed(0)
    network = build_classifier(SENET, 3, SIZE)
    fit = ClassifierFitConfig(epochs=1, mixup=0.4, label_smoothing=0.1)
    algorithm = CrossEntropy(network, ClassifierRunConfig(optimizer=PLAIN, train=fit), Setting("fp32", 1, 6))
    part = global_batch(6, number=0)
    torch.manual_seed(1)
    loss = algorithm.step({"train": iter([[part]])}, detailed=False).sums["loss"]
    torch.manual_seed(0)
    network = build_classifier(SENET, 3, SIZE).train()
    mixed = Mixing(0.4, 0.0, 0, 6)(part)
    targets = torch.nn.functional.one_hot(part.labels, 3).float()
    soft = mixed.shares[:, None] * targets + (1 - mixed.shares[:, None]) * targets[mixed.partners]
    torch.manual_seed(1)
    expected = torch.nn.functional.cross_entropy(network(mixed.images), soft, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(loss, expected.detach())
