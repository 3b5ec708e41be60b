"""From a ClassifierConfig to a network."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.classifiers.config import ClassifierConfig
from models.classifiers.senet_ge import SENetGE
from models.classifiers.weights import load_weights, read_weights
from models.errors import ModelError


class Renormalized(nn.Module):
    """A network that was made for images of another mean and deviation, fed with images in [-1, 1].

    mean, std: per channel, of images in [0, 1]. The statistics are no part of the state dict.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        means, deviations = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 0.5 / deviations, persistent=False)
        self.register_buffer("offset", (0.5 - means) / deviations, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images * self.scale + self.offset)
        return logits


def build_classifier(
    config: ClassifierConfig,
    number_of_types: int,
    image_size: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The network: float images [n, 3, S, S] in [-1, 1] -> logits float [n, number_of_types].

    Images are normalised with mean and deviation 0.5. image_size S is needed only by timm models of a fixed
    input size (transformers). weights: to begin with, in place of the file that `config.weights` names.
    The network's structure and the names in its state dict do not depend on
    `config.weights`: to fill it from a checkpoint, build it with `dataclasses.replace(config, weights=None)`.
    ModelError for whatever cannot be built or loaded.
    """
    if number_of_types < 1:
        raise ModelError(f"a classifier needs at least one cell type, not {number_of_types}")
    network: nn.Module
    if config.architecture == "senet":
        try:
            network = SENetGE(config, number_of_types)
        except (ValueError, ZeroDivisionError) as error:
            raise ModelError(f"model={config.name} cannot be built: {error}; change model.*") from error
        classifiers: tuple[str, ...] = ("last_linear",)
    else:
        network = create_timm_model(config, number_of_types, image_size)
        classifiers = classifier_names(config.timm_name)
    if config.weights == "pretrained":
        weights = pretrained_weights(config, image_size)
        load_weights(network, weights, f"timm {config.timm_name}", classifiers, ("attention",))
    elif config.weights is not None:
        weights = read_weights(Path(config.weights)) if weights is None else weights
        if all(name.startswith("network.") for name in weights):  # a Renormalized network was saved
            weights = {name.removeprefix("network."): value for name, value in weights.items()}
        load_weights(network, weights, config.weights, classifiers, ("attention",))
    if config.timm_name:
        default = pretrained_config(config.timm_name)
        network = Renormalized(network, default.mean, default.std)
    return network


def pretrained_config(name: str) -> Any:
    """timm's record of a model (mean, std, classifier, fixed_input_size). ModelError for an unknown name."""
    try:
        default = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # a known model with an unknown tag
        default = None
    if default is None:
        bare = name.partition(".")[0]
        known = timm.list_models() + timm.list_pretrained()
        close = difflib.get_close_matches(name, known) or difflib.get_close_matches(bare, known, cutoff=0.4)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise ModelError(f"model.timm_name={name}: timm {timm.__version__} has no such model{hint}")
    return default


def classifier_names(timm_name: str) -> tuple[str, ...]:
    """The last layer's name in a timm model (two of them in distilled ones)."""
    classifier = pretrained_config(timm_name).classifier
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


def create_timm_model(config: ClassifierConfig, number_of_types: int, image_size: int | None) -> nn.Module:
    """A timm model with fresh weights and `number_of_types` outputs."""
    arguments: dict[str, Any] = {"num_classes": number_of_types}
    if config.dropout > 0:
        arguments["drop_rate"] = config.dropout
    if pretrained_config(config.timm_name).fixed_input_size and image_size is not None:
        arguments["img_size"] = image_size
    try:
        network: nn.Module = timm.create_model(config.timm_name, pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        said = f"model.timm_name={config.timm_name} cannot be built with {arguments}"
        raise ModelError(f"{said}: {' '.join(str(error).split())}") from error
    return network


def pretrained_weights(config: ClassifierConfig, image_size: int | None) -> dict[str, Tensor]:
    """timm's pretrained weights of `config.timm_name`, downloaded or from its cache."""
    if not config.timm_name:
        raise ModelError("model.weights=pretrained needs model.timm_name, the timm model that they belong to")
    default = pretrained_config(config.timm_name)
    arguments: dict[str, Any] = {"img_size": image_size} if default.fixed_input_size and image_size is not None else {}
    try:
        # A network that cannot be reached shows itself by errors of several libraries, without a common base.
        return dict(timm.create_model(config.timm_name, pretrained=True, **arguments).state_dict())
    except Exception as error:
        raise ModelError(
            f"model.weights=pretrained: timm's weights of {config.timm_name} could not be fetched "
            f"({type(error).__name__}); give model.weights a local file instead"
        ) from error
