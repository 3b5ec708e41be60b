"""Scores of generated images: against closed forms, and under names that say what they were measured in."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as torch_fidelity
from torchmetrics.image.inception import InceptionScore

from data_pipeline.errors import UserError
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from trainer.metrics.feature_space import ClassifierFeatures, InceptionFeatures
from trainer.metrics.generation import (
    compare,
    extract_features,
    frechet_distance,
    inception_score,
    kernel_distance,
)

Floats = NDArray[np.float64]
TINY = ClassifierConfig(block="basic", layers=(1, 1), widths=(8, 16), groups=1, reduction=4, stem_widths=(8,))
TIMM = ClassifierConfig(architecture="timm", timm_name="test_resnet.r160_in1k")


def gaussian(mean: Floats, covariance: Floats, n: int = 200, seed: int = 0) -> Floats:
    """A sample whose own mean and covariance are exactly these."""
    drawn = np.random.default_rng(seed).normal(size=(n, len(mean)))
    drawn -= drawn.mean(axis=0)
    whitened = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn.T))).T
    return mean + whitened @ np.linalg.cholesky(covariance).T


def covariance(seed: int) -> Floats:
    factor = np.random.default_rng(seed).normal(size=(4, 4))
    return np.asarray(factor @ factor.T + 0.1 * np.eye(4))


def classifier(config: ClassifierConfig, types: int = 5) -> nn.Module:
    torch.manual_seed(0)
    network = build_classifier(config, types, 32).eval()
    for module in network.modules():  # fresh statistics would make a ramp of every layer
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
    return network


def test_frechet_distance_is_that_of_the_gaussians() -> None:
    """A wrong square root or covariance shifts every FID that a user would compare with a paper's."""
    deviations, others = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.5, 0.1])
    mean, other = np.zeros(4) + 100, np.array([101.0, 98.0, 100.0, 100.5])
    expected = ((mean - other) ** 2).sum() + ((deviations - others) ** 2).sum()
    found = frechet_distance(gaussian(mean, np.diag(deviations**2)), gaussian(other, np.diag(others**2), seed=1))
    assert found == pytest.approx(expected, rel=1e-9)

    c, d = covariance(1), covariance(2)
    expected = ((mean - other) ** 2).sum() + np.trace(c + d - 2 * np.real(sqrtm(c @ d)))
    assert frechet_distance(gaussian(mean, c), gaussian(other, d, n=300, seed=3)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_fewer_images_than_features_is_a_number() -> None:
    """Rare cell types have fewer images than features: their score must be finite, and 0 of a set with itself."""
    few = np.random.default_rng(0).normal(size=(10, 40))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)
    assert np.isfinite(frechet_distance(few, few + 1))
    assert frechet_distance(few, few + 1) == pytest.approx(40, rel=1e-4)


def unbiased_mmd(x: Floats, y: Floats) -> float:
    """Binkowski et al. 2018, equation 4, one pair at a time."""

    def kernel(a: Floats, b: Floats) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n = len(x)
    within = [kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j]
    between = [kernel(x[i], y[j]) for i in range(n) for j in range(n)]
    return sum(within) / (n * (n - 1)) - 2 * sum(between) / n**2


def test_kernel_distance_is_the_unbiased_one() -> None:
    """With the diagonal left in, few images would score as far from their own kind."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)) + 0.5
    assert kernel_distance(x, y) == (pytest.approx(unbiased_mmd(x, y)), 0.0)
    same = [kernel_distance(rng.normal(size=(15, 6)), rng.normal(size=(15, 6)))[0] for _ in range(300)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert min(same) < 0 < max(same)


def test_kernel_distance_of_unequal_sets_uses_subsets_that_both_can_fill() -> None:
    """A rare type's fifteen real images against a thousand generated ones must not end in an error."""
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(15, 4)), rng.normal(size=(300, 4)) + 3
    mean, deviation = kernel_distance(real, generated, subsets=10, seed=5)
    assert mean > 3 * deviation > 0
    assert kernel_distance(real, generated, subsets=10, seed=5) == (mean, deviation)
    with pytest.raises(ValueError, match="two images of each kind: got 1 and 300"):
        kernel_distance(real[:1], generated)


def test_inception_score_runs_from_one_to_the_number_of_classes() -> None:
    """Its bounds are how a reader tells a good score; zeros in the probabilities must not make it NaN."""
    certain = np.tile(np.eye(4), (10, 1))
    assert inception_score(certain, splits=1) == (pytest.approx(4), 0.0)
    assert inception_score(np.full((40, 4), 0.25), splits=5) == (pytest.approx(1), pytest.approx(0))
    assert inception_score(certain[np.zeros(40, dtype=int)]) == (pytest.approx(1), pytest.approx(0))

    logits = torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    published = InceptionScore(nn.Identity(), splits=1)
    published.update(logits)
    found, _ = inception_score(logits.softmax(1).numpy(), splits=1)
    assert found == pytest.approx(float(published.compute()[0]))


@pytest.mark.parametrize("config", [TINY, TIMM], ids=["senet", "timm"])
def test_classifier_features_are_what_its_last_layer_sees(config: ClassifierConfig) -> None:
    """Features of another layer, or of images normalised in another way, would make scores of no one's network."""
    network = classifier(config)
    space = ClassifierFeatures(network, "tiny 1a2b3c4d", 32)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features, probabilities = space(images)
    torch.testing.assert_close(probabilities, network(images).softmax(1))
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(features).softmax(1), probabilities)
    large = nn.functional.interpolate(images, (80, 80), mode="nearest")
    resized = nn.functional.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(space(large)[0], space(resized)[0])


def batches(n: int, seed: int) -> list[Tensor]:
    return list((torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1).split(8))


def test_scores_say_what_they_were_measured_in() -> None:
    """A distance in the project's own features must never be read as a FID, nor one of too few images as sound."""
    space = ClassifierFeatures(classifier(TINY), "tiny 1a2b3c4d", 32)
    features = extract_features(space, batches(20, 0))
    same = compare(space, features, features)
    assert same.frechet.value == pytest.approx(0, abs=1e-6)
    other = compare(space, features, extract_features(space, [images.abs() for images in batches(12, 1)]))
    assert other.frechet.value > 100 * same.frechet.value
    assert other.kernel.value > same.kernel.value
    assert (other.real, other.generated, other.dimensions, other.too_few) == (20, 12, 16, True)
    assert not dataclasses.replace(other, generated=16).too_few
    record = json.loads(json.dumps(other.as_record(), allow_nan=False))
    assert record["too_few"] is True
    assert record["scores"]["Fréchet distance [classifier tiny 1a2b3c4d]"]["value"] == other.frechet.value
    assert len(record["scores"]) == 3
    assert all(name.endswith("[classifier tiny 1a2b3c4d]") for name in record["scores"])
    assert not any(published in name for name in record["scores"] for published in ("FID", "KID", "inception score"))
    with pytest.raises(ValueError, match="no image"):
        extract_features(space, [])


@pytest.fixture
def inception_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in a file of the published one's form."""
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch_fidelity, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(torch_fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = torch_fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    path = tmp_path / "weights-inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_gives_the_features_of_fid(inception_file: Path) -> None:
    """FID is of the 2,048 pooled features of 8-bit images, the inception score of 1,008 classes without a bias."""
    space = InceptionFeatures(str(inception_file))
    assert [space.score_name(score) for score in ("frechet", "kernel", "inception")] == [
        "FID",
        "KID",
        "inception score",
    ]
    intensities = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features, probabilities = space(intensities / 127.5 - 1)
    assert features.shape == (2, 2048)
    assert probabilities.shape == (2, 1008)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    torch.testing.assert_close(features, space.network(intensities)[0], rtol=0, atol=0)
    torch.testing.assert_close(probabilities, (features @ space.network.fc.weight.T).softmax(1))


class Trap:
    """Unpickled, it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trapped"),)


def test_inception_without_its_weights_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a network must say where to put the file; a foreign file must not run code."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        InceptionFeatures(str(tmp_path / "absent.pth"))
    torch.save({"weights": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=r"trap\.pth: not the weights of the Inception network") as told:
        InceptionFeatures(str(tmp_path / "trap.pth"))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "trapped").exists()

    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("fetched from the network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", reached)
    with pytest.raises(UserError, match=r"not at hand: get https://.*, inception_weights=FILE"):
        InceptionFeatures()
