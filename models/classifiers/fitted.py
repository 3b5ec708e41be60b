"""Classifiers that are fitted to the features of all training images at once, not trained by gradients."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class FittedClassifier(nn.Module, ABC):
    """Images float [n, 3, S, S] in [-1, 1] -> logits float32 [n, types], through features that no fit changes."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features float [n, d]; they depend on nothing that is fitted."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Logits float [n, types]."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images)).float()
