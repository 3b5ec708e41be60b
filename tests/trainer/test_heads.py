"""Heads on fixed features: right where a reference is right, and chosen by images that they were not fitted to."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models.classifiers.nearest_neighbours import NearestNeighbours
from trainer.tasks.classification.training.heads import balanced_weights, choose_head, fit_linear


def _clouds(per_type: int, types: int = 3, d: int = 6, spread: float = 1.5, seed: int = 0):
    """Overlapping clouds of unequal scale and offset: features float32 [n, d], labels int64 [n]."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(types, d))
    labels = np.repeat(np.arange(types), per_type)
    features = centres[labels] + spread * draw.normal(size=(len(labels), d))
    return (features * 10.0 ** np.arange(-1, d - 1) * 0.1 + 5).astype(np.float32), labels


@pytest.mark.parametrize("balanced", [False, True])
def test_linear_head_is_the_logistic_regression_of_standardised_features(balanced: bool) -> None:
    """Else a penalty would mean something else for every backbone, and no result could be checked elsewhere."""
    features, labels = _clouds(60)
    features, labels = features[20:], labels[20:]  # types of unequal counts
    weights = balanced_weights(labels, 3) if balanced else None
    head = fit_linear(features, labels, 3, l2=0.1, weights=weights)
    standardised = (features - features.mean(0)) / features.std(0)
    reference = LogisticRegression(
        C=1 / (0.1 * len(labels)), class_weight="balanced" if balanced else None, tol=1e-8, max_iter=2000
    ).fit(standardised, labels)
    found = head(torch.from_numpy(features)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, reference.predict_proba(standardised), atol=2e-3)


def test_nearest_head_votes_as_written_out() -> None:
    stored, labels = torch.randn(12, 5), torch.arange(12) % 3
    asked = torch.randn(4, 5)
    head = NearestNeighbours(stored, labels, types=3, neighbours=4, temperature=0.2)
    for features, logits in zip(asked, head(asked), strict=True):
        cosines = [float(features @ one / features.norm() / one.norm()) for one in stored]
        nearest = sorted(range(12), key=lambda row: -cosines[row])[:4]
        votes = [sum(math.exp(cosines[row] / 0.2) for row in nearest if labels[row] == number) for number in range(3)]
        expected = [max(vote / sum(votes), 1e-6) for vote in votes]
        np.testing.assert_allclose(logits.softmax(dim=0).numpy(), expected, atol=1e-5)


def test_nearest_head_of_a_checkpoint_has_the_images_of_its_fit() -> None:
    """A run is built before it is known how many images its head was fitted to."""
    head = NearestNeighbours(torch.randn(7, 5), torch.arange(7) % 2, types=2, neighbours=3)
    empty = NearestNeighbours(torch.zeros(0, 5), torch.zeros(0), types=2, neighbours=3)
    empty.load_state_dict(head.state_dict())
    asked = torch.randn(3, 5)
    torch.testing.assert_close(empty(asked), head(asked))


@pytest.mark.parametrize("kind", ["linear", "nearest"])
def test_setting_is_chosen_on_images_apart(kind) -> None:
    """The score that is reported is of images that the head did not learn from: near that of new images."""
    features, labels = _clouds(30)
    fitted = choose_head(kind, features, labels, 3)
    assert fitted.chosen_by == "cross-validation in 5 folds"
    fresh, truth = _clouds(300, seed=1)
    right = (fitted.head(torch.from_numpy(fresh)).argmax(dim=1).numpy() == truth).mean()
    assert abs(fitted.balanced_accuracy - right) < 0.15
    by_validation = choose_head(kind, features, labels, 3, validation=(fresh, truth))
    own = (by_validation.head(torch.from_numpy(fresh)).argmax(dim=1).numpy() == truth).mean()
    assert by_validation.chosen_by == "validation images"
    assert by_validation.balanced_accuracy == pytest.approx(own)


def test_images_of_one_patient_are_not_on_both_sides() -> None:
    """A patient's images are alike: a head that knows the patient would look better than it is."""
    draw = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 6)
    labels = (patients % 2).astype(np.int64)
    features = draw.normal(size=(20, 4))[patients].astype(np.float32)  # a patient's mark, nothing of the type
    features += 0.01 * draw.normal(size=features.shape).astype(np.float32)
    blind = choose_head("nearest", features, labels, 2)
    apart = choose_head("nearest", features, labels, 2, groups=patients)
    assert blind.balanced_accuracy > 0.95
    assert apart.balanced_accuracy < 0.85


def test_one_image_of_a_type_takes_the_default() -> None:
    features, labels = _clouds(5)
    keep = np.r_[0, 5:15]
    fitted = choose_head("linear", features[keep], labels[keep], 3)
    assert fitted.chosen_by == "default"
    assert math.isnan(fitted.balanced_accuracy)
    assert fitted.head(torch.from_numpy(features)).isfinite().all()
