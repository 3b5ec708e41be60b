"""From a ClassifierConfig to a network."""

import bisect
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from models.classifiers.config import ClassifierConfig
from models.classifiers.naive_bayes import NaiveBayes
from models.classifiers.senet_ge import SENetGE
from models.classifiers.sequential_cnn import SequentialCNN
from models.classifiers.weights import load_weights, read_weights
from models.errors import ModelError

# Every classifier takes images of this side in pixels.
_USUAL_SIZE = 224


class InputAdapter(nn.Module):
    """A network that was made for other images, fed with ours: [n, 3, S, S] in [-1, 1].

    mean, std: per channel, those of its own images in [0, 1]. least_size: smaller images are enlarged to this side.
    The statistics are no part of the state dict.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], least_size: int = 0
    ) -> None:
        super().__init__()
        self.network, self.least_size = network, least_size
        means, deviations = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 0.5 / deviations, persistent=False)
        self.register_buffer("offset", (0.5 - means) / deviations, persistent=False)

    def adapted(self, images: Tensor) -> Tensor:
        """Our images as the network's own."""
        if images.shape[-1] < self.least_size:
            images = functional.interpolate(images, (self.least_size, self.least_size), mode="bilinear")
        return images * self.scale + self.offset

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.adapted(images))
        return logits


def build_classifier(
    config: ClassifierConfig,
    number_of_types: int,
    image_size: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The network: float images [n, 3, S, S] in [-1, 1] -> logits float [n, number_of_types].

    Images are normalised with mean and deviation 0.5. image_size S is needed only by timm models of a fixed
    input size (transformers); given, one too small for the network is refused. weights: to begin with, in place
    of the file that `config.weights` names. The network's structure and the names in its state dict do not depend
    on `config.weights`: to fill it from a checkpoint, build it with `dataclasses.replace(config, weights=None)`.
    ModelError for whatever cannot be built or loaded.
    """
    if number_of_types < 1:
        raise ModelError(f"a classifier needs at least one cell type, not {number_of_types}")
    network = create_network(config, number_of_types, image_size)
    if image_size is not None:
        refuse_small_images(network, config, max(image_size, config.least_size))
    classifiers = classifier_names(config.timm_name) if config.architecture == "timm" else ("last_linear",)
    if config.weights == "pretrained":
        weights = pretrained_weights(config, image_size)
        load_weights(network, weights, f"timm {config.timm_name}", classifiers, ("attention",))
    elif config.weights is not None:
        weights = read_weights(Path(config.weights)) if weights is None else weights
        if all(name.startswith("network.") for name in weights):  # saved with its input adapter
            weights = {name.removeprefix("network."): value for name, value in weights.items()}
        load_weights(network, weights, config.weights, classifiers, ("attention",))
    if config.timm_name:
        default = pretrained_config(config.timm_name)
        network = InputAdapter(network, default.mean, default.std, config.least_size)
    return network


def create_network(config: ClassifierConfig, number_of_types: int, image_size: int | None) -> nn.Module:
    """The bare network with fresh weights."""
    if config.architecture == "timm":
        return create_timm_model(config, number_of_types, image_size)
    if config.architecture == "naive_bayes":
        return NaiveBayes(number_of_types)
    if config.architecture == "sequential":
        return SequentialCNN(config, number_of_types)
    try:
        return SENetGE(config, number_of_types)
    except (ValueError, ZeroDivisionError) as error:
        raise ModelError(f"model={config.name} cannot be built: {error}; change model.*") from error


@torch.no_grad()
def refuse_small_images(network: nn.Module, config: ClassifierConfig, image_size: int) -> None:
    """ModelError for images that a network's convolutions and pooling leave nothing of (Inception's, below 75 px).

    No model says its smallest image, so shapes alone are sent through, without memory or arithmetic.
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


def pretrained_config(name: str) -> Any:
    """timm's record of a model (mean, std, classifier, fixed_input_size). ModelError for an unknown name."""
    import timm  # here: most runs need none of it

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
    import timm

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
    import timm

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
