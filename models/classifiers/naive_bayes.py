"""Gaussian naive Bayes on hand-made features, as a network like any other (figure 52; Webb et al. 2010)."""

import math

import torch
from torch import Tensor, nn

from models.classifiers.hand_features import FEATURES, hand_features


class NaiveBayes(nn.Module):
    """Each type's features are independent normal variables: p(type | x) ~ p(type) * prod_f N(x_f; mean, variance).

    float [n, 3, S, S] in [-1, 1] -> log posterior float32 [n, number_of_types], whose softmax is the posterior.
    Its parameters are float64, and no gradient moves them: means and variances [types, features] and log_priors
    [types]. Fresh, it knows nothing: every type is as likely.
    """

    def __init__(self, number_of_types: int) -> None:
        super().__init__()
        shape = (number_of_types, len(FEATURES))
        self.means = _fitted(torch.zeros(shape))
        self.variances = _fitted(torch.ones(shape))
        self.log_priors = _fitted(torch.full((number_of_types,), -math.log(number_of_types)))

    def log_posterior(self, features: Tensor) -> Tensor:
        """Of features float64 [n, len(FEATURES)]: float64 [n, number_of_types], logarithms of probabilities."""
        distance = (features[:, None] - self.means).square() / self.variances
        log_likelihood = -0.5 * (distance + (2 * math.pi * self.variances).log()).sum(2)
        # Likelihoods of many features are far apart: only in float64 is a difference of them worth a digit.
        return (self.log_priors + log_likelihood).log_softmax(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.log_posterior(hand_features(images)).float()


def _fitted(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.double(), requires_grad=False)
