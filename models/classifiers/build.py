"""From a ClassifierConfig to a network."""

import bisect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.classifiers.architectures.frozen import FrozenClassifier
from models.classifiers.architectures.timm import (
    classifier_names,
    converted,
    feature_size,
    pretrained_config,
    pretrained_weights,
)
from models.classifiers.config import ClassifierConfig
from models.classifiers.input_adapter import InputAdapter
from models.classifiers.norm import replace_batch_norms, without_statistics
from models.classifiers.weights import bare_names, load_weights, read_weights
from models.errors import ModelError

# Every classifier takes images of this side in pixels.
_USUAL_SIZE = 224


def build_classifier(
    config: ClassifierConfig,
    number_of_types: int,
    image_size: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The network: float images [n, 3, S, S] in [-1, 1] -> logits float [n, number_of_types].

    image_size: needed by timm models of a fixed input size (transformers); if given, a size too small for the network
    is refused. weights: used in place of the file that `config.weights` names. Structure and state dict names do not
    depend on `config.weights`: to load a checkpoint, build with `dataclasses.replace(config, weights=None)`.
    ModelError for anything that cannot be built or loaded.
    """
    if number_of_types < 1:
        raise ModelError(f"a classifier needs at least one cell type, not {number_of_types}")
    family = import_module(f"models.classifiers.architectures.{config.architecture}")
    network: nn.Module = family.build(config, number_of_types, image_size)
    if config.norm is not None and config.norm != "auxiliary":
        replace_batch_norms(network, config.norm)
    if image_size is not None:
        refuse_small_images(network, config, max(image_size, config.least_size))
    is_timm = config.architecture in ("timm", "frozen")
    classifiers = classifier_names(config.timm_name) if is_timm else ("last_linear",)
    if config.weights == "pretrained":
        weights, source = pretrained_weights(config, image_size), f"timm {config.timm_name}"
    elif config.weights is not None:
        weights, source = bare_names(read_weights(Path(config.weights)) if weights is None else weights), config.weights
        if is_timm:
            weights = converted(network, weights)
    if config.weights is not None and weights is not None:
        if config.architecture == "frozen":  # a file has the last layer too
            weights = {name: value for name, value in weights.items() if name.rpartition(".")[0] not in classifiers}
        if config.norm == "group":
            weights = without_statistics(weights)
        load_weights(network, weights, source, classifiers, ("attention",))
    if config.norm == "auxiliary":  # both of its sets begin as the initial weights' one
        replace_batch_norms(network, config.norm)
    if not config.timm_name and not config.stretch:
        return network
    default = pretrained_config(config.timm_name) if config.timm_name else None
    mean, std = ((0.5,) * 3, (0.5,) * 3) if default is None else (default.mean, default.std)
    adapter = InputAdapter(network, mean, std, config.least_size, config.stretch)
    if config.architecture == "frozen":
        return FrozenClassifier(adapter, feature_size(network), config, number_of_types)
    return adapter


@torch.no_grad()
def refuse_small_images(network: nn.Module, config: ClassifierConfig, image_size: int) -> None:
    """ModelError for images that convolutions and pooling reduce to nothing (Inception's, below 75 px).

    No model tells its smallest image, so empty tensors are sent through on the meta device.
    """
    weights = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}

    def fits(size: int) -> bool:
        try:
            functional_call(network, weights, (torch.empty(1, 3, size, size, device="meta"),))
        except (RuntimeError, ValueError, AssertionError):
            return False
        return True

    network.eval()
    if image_size < _USUAL_SIZE and not fits(image_size) and fits(_USUAL_SIZE):
        smallest = image_size + bisect.bisect_left(range(image_size, _USUAL_SIZE), True, key=fits)
        raise ModelError(
            f"model={config.name} takes images of {smallest} pixels and more, not of {image_size}: "
            f"set data.image_size={smallest} or larger"
        )
    network.train()
