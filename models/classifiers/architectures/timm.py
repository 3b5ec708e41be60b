"""Any timm model, by its name. timm is imported when one is built: most runs need none."""

import difflib
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from models.classifiers.config import ClassifierConfig
from models.errors import ModelError


def build(config: ClassifierConfig, number_of_types: int, image_size: int | None) -> nn.Module:
    """A timm model with fresh weights; its last layers are `classifier_names`. image_size: for transformers."""
    import timm

    arguments: dict[str, Any] = {"num_classes": number_of_types, **_fixed_size(config, image_size)}
    if config.dropout > 0:
        arguments["drop_rate"] = config.dropout
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
    arguments = _fixed_size(config, image_size)
    try:
        # A failed download raises errors of several libraries, without a common base.
        return dict(timm.create_model(config.timm_name, pretrained=True, **arguments).state_dict())
    except Exception as error:
        raise ModelError(
            f"model.weights=pretrained: timm's weights of {config.timm_name} could not be fetched "
            f"({type(error).__name__}); give model.weights a local file instead"
        ) from error


def converted(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a file as timm's own loader hands them to this model.

    It knows other projects' names (DINOv2's) and interpolates positions of another image size.
    """
    convert = getattr(import_module(type(network).__module__), "checkpoint_filter_fn", None)
    return weights if convert is None else dict(convert(dict(weights), network))


def feature_size(network: nn.Module) -> int:
    """Number of features that a timm model without its last layer gives."""
    return int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]


def pretrained_config(name: str) -> Any:
    """timm's record of a model (mean, std, classifier, fixed_input_size). ModelError for an unknown name."""
    import timm

    try:
        default = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # a known model with an unknown tag
        default = None
    if default is None:
        known = timm.list_models() + timm.list_pretrained()
        close = difflib.get_close_matches(name, known)
        close = close or difflib.get_close_matches(name.partition(".")[0], known, cutoff=0.4)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise ModelError(f"model.timm_name={name}: timm {timm.__version__} has no such model{hint}")
    return default


def classifier_names(timm_name: str) -> tuple[str, ...]:
    """The names of a timm model's last layer (distilled models have two)."""
    classifier = pretrained_config(timm_name).classifier
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


def _fixed_size(config: ClassifierConfig, image_size: int | None) -> dict[str, Any]:
    fixed = pretrained_config(config.timm_name).fixed_input_size and image_size is not None
    return {"img_size": max(image_size or 0, config.least_size)} if fixed else {}
