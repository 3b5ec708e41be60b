"""Gaussian naive Bayes on hand-made features, as a network like any other (figure 52; Webb et al. 2010)."""

import math

import torch
from torch import Tensor, nn

from models.classifiers.config import ClassifierConfig
from models.classifiers.fitted import FittedClassifier
from models.classifiers.hand_features import FEATURES, hand_features


def build(config: ClassifierConfig, number_of_types: int, image_size: int | None) -> nn.Module:
    return NaiveBayes(number_of_types)


class NaiveBayes(FittedClassifier):
    """Each type's features are independent normal variables: p(type | x) ~ p(type) * prod_f N(x_f; mean, variance).

    float [n, 3, S, S] in [-1, 1] -> log posterior float32 [n, number_of_types]; its softmax is the posterior.
    Parameters are float64 without gradients: means and variances [types, features], log_priors [types]. Before it is
    fitted, every type has the same probability.
    """

    def __init__(self, number_of_types: int) -> None:
        super().__init__()
        shape = (number_of_types, len(FEATURES))
        self.means = _fitted(torch.zeros(shape))
        self.variances = _fitted(torch.ones(shape))
        self.log_priors = _fitted(torch.full((number_of_types,), -math.log(number_of_types)))

    def features(self, images: Tensor) -> Tensor:
        return hand_features(images)

    def classify(self, features: Tensor) -> Tensor:
        """Features float64 [n, len(FEATURES)] -> log probabilities float64 [n, number_of_types]."""
        distance = (features[:, None] - self.means).square() / self.variances
        log_likelihood = -0.5 * (distance + (2 * math.pi * self.variances).log()).sum(2)
        # Sums over many features are large: their differences need float64.
        return (self.log_priors + log_likelihood).log_softmax(1)


def _fitted(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.double(), requires_grad=False)
