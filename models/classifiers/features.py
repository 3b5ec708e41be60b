"""The features of a classifier: the input of its last layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from models.classifiers.architectures.frozen import FrozenClassifier
from models.classifiers.build import InputAdapter
from models.errors import ModelError


def last_layer(classifier: nn.Module) -> nn.Module:
    """The layer that turns features into logits. ModelError for a network without one, naive Bayes."""
    if isinstance(classifier, InputAdapter):
        return last_layer(classifier.network)
    if isinstance(classifier, FrozenClassifier):
        return classifier.head
    layer = getattr(classifier, "last_linear", None)
    if layer is None and hasattr(classifier, "get_classifier"):  # timm's models
        layer = classifier.get_classifier()
    if isinstance(layer, tuple):  # a distilled model has two
        layer = layer[0]
    if not isinstance(layer, nn.Module):
        raise ModelError(f"{type(classifier).__name__} has no last layer whose input could be taken as features")
    return layer


@contextmanager
def watch_features(classifier: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives the features [n, d] of every forward pass while the context lasts."""
    seen: list[Tensor] = []

    def keep(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].flatten(1))

    handle = last_layer(classifier).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


class Features(nn.Module):
    """A classifier's features in place of its logits: images float [n, 3, S, S] in [-1, 1] -> float32 [n, d]."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        with watch_features(self.classifier) as seen:
            self.classifier(images)
        return seen[0].float()
