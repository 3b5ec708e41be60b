"""The features of a classifier: the input of its last layer, and the means of its stages' maps."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.classifiers.architectures.frozen import FrozenClassifier
from models.classifiers.architectures.senet import SENetGE
from models.classifiers.input_adapter import InputAdapter
from models.errors import ModelError

# Stages whose maps `watch_layers` sees: the first ones tell stain and sharpness, not cell types.
LAST_STAGES = 3


def last_layer(classifier: nn.Module) -> nn.Module:
    """The layer that turns features into logits. ModelError for a network without one, naive Bayes."""
    if isinstance(classifier, InputAdapter):
        return last_layer(classifier.network)
    if isinstance(classifier, FrozenClassifier):
        return classifier.head
    network: Any = classifier
    layer = getattr(network, "last_linear", None)
    if layer is None and hasattr(network, "get_classifier"):  # timm's models
        layer = network.get_classifier()
    if isinstance(layer, tuple):  # a distilled model has two
        layer = layer[0]
    if not isinstance(layer, nn.Module):
        raise ModelError(f"{type(classifier).__name__} has no last layer whose input could be taken as features")
    return layer


def stages(classifier: nn.Module) -> list[nn.Module]:
    """The stages of one of the project's classifiers, first to last; none for naive Bayes."""
    if isinstance(classifier, InputAdapter):
        return stages(classifier.network)
    if isinstance(classifier, FrozenClassifier):
        return stages(classifier.backbone)
    if isinstance(classifier, SENetGE):
        found = [classifier.get_submodule(name) for name in classifier.stages]
        return found if classifier.attention is None else [*found, classifier.attention]
    timm_stages: Any = getattr(classifier, "feature_info", [])  # of timm's models
    return [classifier.get_submodule(stage["module"]) for stage in timm_stages]


@contextmanager
def watch_features(classifier: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives the features [n, d], the last layer's input, of every forward pass in the context."""
    seen: list[Tensor] = []

    def keep(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].flatten(1))

    handle = last_layer(classifier).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def watch_layers(classifier: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives, in a forward pass, the mean [n, c] of each of the last stages' maps, and the features."""

    def keep(_stage: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append(_mean_of_map(output))

    with watch_features(classifier) as seen, ExitStack() as hooks:
        for stage in stages(classifier)[-LAST_STAGES:]:
            hooks.callback(stage.register_forward_hook(keep).remove)
        yield seen


def _mean_of_map(output: Tensor) -> Tensor:
    if output.ndim == 4:  # maps are square; some transformers give them with their channels last
        return output.mean((2, 3)) if output.shape[2] == output.shape[3] else output.mean((1, 2))
    return output.mean(1) if output.ndim == 3 else output


class Layers(nn.Module):
    """What `watch_layers` sees, side by side, in place of a classifier's logits.

    Images float [n, 3, S, S] in [-1, 1] -> float32 [n, sum of `sizes`]. image_size: S.
    """

    def __init__(self, classifier: nn.Module, image_size: int) -> None:
        super().__init__()
        self.classifier = classifier
        device = next(classifier.parameters()).device
        with torch.no_grad(), watch_layers(classifier) as seen:
            classifier(torch.zeros((1, 3, image_size, image_size), device=device))
        self.sizes = [each.shape[1] for each in seen]

    def forward(self, images: Tensor) -> Tensor:
        with watch_layers(self.classifier) as seen:
            self.classifier(images)
        return torch.cat(seen, dim=1).float()
