"""Weights from a file into a network; a misfit is an error that names the parts."""

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import ModelError


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict on the CPU from a .safetensors or torch.save file; no pickled code is run.

    A torch file may hold the state dict itself or have it under "state_dict", "model" or "teacher" (DINOv2, DinoBloom).
    ModelError if the file is missing, damaged or something else.
    """
    if not path.is_file():
        raise ModelError(f"model.weights={path}: no such file; give a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(
            f"model.weights={path}: not a readable safetensors file or torch state dict "
            f"({type(error).__name__}); give another file"
        ) from error
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"model.weights={path}: holds no state dict (names to tensors); give another file")
    return dict(content)


def bare_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under their network's own names.

    Without the `backbone.` of DINOv2, DinoBloom and frozen features, whose other parts are left out, and without the
    `network.` of an input adapter.
    """
    for prefix, others in (("backbone.", True), ("network.", False)):
        inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if inside and (others or len(inside) == len(weights)):
            weights = inside
    return dict(weights)


def load_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    classifiers: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Copies all `weights` into `network`, with two exceptions.

    classifiers: names of last layers; one that is missing in `weights`, or has another number of types there, starts at
    zero: every type is then equally probable, and the errors of a random layer do not spoil the trunk (timm's random
    one gave EfficientNet-Lite0 a first loss of 6.4, where 8 types by chance are 2.1). optional: names of parts that
    keep theirs if `weights` have nothing of them. ModelError, naming `source` and the keys, for anything else that is
    missing, unknown or of another shape.
    """
    own = network.state_dict()
    found = dict(weights)
    for part in classifiers:
        names = [name for name in own if name.startswith(f"{part}.")]
        if any(name not in found or found[name].shape != own[name].shape for name in names) and all(
            name not in found or found[name].shape[1:] == own[name].shape[1:] for name in names
        ):
            found.update({name: torch.zeros_like(own[name]) for name in names})
    for part in optional:
        if not any(name.startswith(f"{part}.") for name in found):
            found.update({name: value for name, value in own.items() if name.startswith(f"{part}.")})
    for name, value in own.items():  # missing in files from before torch 0.4.1, as some of timm's are
        if name.endswith(".num_batches_tracked"):
            found.setdefault(name, value)
    misfits = {
        "missing": [name for name in own if name not in found],
        "unknown": [name for name in found if name not in own],
        "of another shape": [name for name in own if name in found and found[name].shape != own[name].shape],
    }
    if any(misfits.values()):
        said = "; ".join(f"{kind}: {abbreviate(names)}" for kind, names in misfits.items() if names)
        raise ModelError(f"weights from {source} are not of this model ({said}); give the model they were made by")
    network.load_state_dict(found)


def abbreviate(names: list[str], shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
