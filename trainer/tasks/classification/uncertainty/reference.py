"""What a classifier does not know: images unlike those it learned from, and types that an image may be as well.

A run keeps, in uncertainty.safetensors, the statistics of its training images' features and its answers to its
validation images. From these follow, for any number of views and any runs that answer together, a scale for the
distance of an image from the training images, and sets of types that hold the true one at a chosen coverage.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from models.classifiers.features import watch_layers
from trainer.metrics.conformal import FAMILIAR, least_probability, scale_to_limit
from trainer.tasks.classification.uncertainty.training_distance import LayerDistance, TrainingDistance
from trainer.tasks.classification.uncertainty.views import mean_log_probabilities

FILE = "uncertainty.safetensors"
_FORMAT_VERSION = 2
_LAYERS = "layers."  # prefix of the tensors of a distance


@dataclass(frozen=True)
class UncertaintyReference:
    """What one run keeps."""

    checkpoint: str  # digest of the checkpoint that it is of
    ids: tuple[str, ...]  # of the n validation images
    labels: Tensor  # int64 [n], of the run's types
    answers: Tensor  # float32 [n, len(VIEWS), types]: log probabilities for each number of views, uncalibrated
    distances: Tensor  # float32 [n], of the validation images from the training images
    distance: TrainingDistance


def save_reference(run: Path, reference: UncertaintyReference) -> None:
    """Write the run's uncertainty.safetensors; it appears whole."""
    tensors = {name: getattr(reference, name) for name in ("labels", "answers", "distances")}
    tensors["ids"] = torch.tensor([list(bytes.fromhex(each)) for each in reference.ids], dtype=torch.uint8)
    tensors |= reference.distance.state_dict()
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    facts = json.dumps({"format_version": _FORMAT_VERSION, "checkpoint": reference.checkpoint})
    # One entry: safetensors writes several in a random order.
    replace_through(run / FILE, safetensors_bytes(tensors, {"facts": f"{_digest(facts, tensors)} {facts}"}))


def load_reference(run: Path, checkpoint: str) -> UncertaintyReference | None:
    """The run's reference for the checkpoint of this digest; None where there is none. UserError if it is damaged."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            digest, _, facts = (file.metadata() or {})["facts"].partition(" ")
        if digest != _digest(facts, tensors):
            raise ValueError("its bytes are not those that were written")
        if json.loads(facts) != {"format_version": _FORMAT_VERSION, "checkpoint": checkpoint}:
            return None
        layers: dict[str, dict[str, Tensor]] = {}
        for name in [name for name in sorted(tensors) if name.startswith(_LAYERS)]:
            number, _, buffer = name.removeprefix(_LAYERS).partition(".")
            layers.setdefault(number, {})[buffer] = tensors.pop(name)
        distance = TrainingDistance([LayerDistance(**layers[number]) for number in sorted(layers, key=int)])
        ids = tuple(bytes(row).hex() for row in tensors.pop("ids").tolist())
        return UncertaintyReference(checkpoint, ids, **tensors, distance=distance)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}): delete it and give the command of the run again") from error


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Uncertainty:
    """The references of one run, or of several that answer together, on one scale.

    Unfamiliarity is a weighted sum of the distances by each run, moved so that the validation images have the median 0
    and that FAMILIAR of them are at most 1.
    """

    networks: tuple[nn.Module, ...]  # of the runs, whose features are compared
    distances: tuple[TrainingDistance, ...]  # of each
    weights: tuple[float, ...]  # of each
    offset: float
    labels: NDArray[np.int64]  # [n], of the validation images
    probabilities: NDArray[np.float64]  # [n, types], the calibrated answer to each

    @classmethod
    def of(
        cls, networks: Sequence[nn.Module], references: Sequence[UncertaintyReference], answers: Sequence[Tensor]
    ) -> "Uncertainty | None":
        """From the validation images that all runs have; None where there are not two.

        answers: of each run, calibrated log probabilities [n, types] of its validation images; the types are in the
        first run's order.
        """
        first = references[0]
        rows_of = [dict(zip(each.ids, range(len(each.ids)), strict=True)) for each in references]
        shared = [name for name in first.ids if all(name in rows for rows in rows_of)]
        if len(shared) < 2:
            return None
        rows = [[each[name] for name in shared] for each in rows_of]
        distances = [each.distances[mine].double().numpy() for each, mine in zip(references, rows, strict=True)]
        scales = [scale_to_limit(each, FAMILIAR) for each in distances]
        middle = np.mean([weight * each + offset for each, (weight, offset) in zip(distances, scales, strict=True)], 0)
        weight, offset = scale_to_limit(middle, FAMILIAR)
        log_probabilities = torch.stack([each[mine] for each, mine in zip(answers, rows, strict=True)], dim=1).double()
        return cls(
            tuple(networks),
            tuple(each.distance for each in references),
            tuple(weight * each / len(scales) for each, _ in scales),
            weight * sum(each for _, each in scales) / len(scales) + offset,
            first.labels[rows[0]].numpy(),
            mean_log_probabilities(log_probabilities).exp().numpy(),
        )

    def added_to(self, network: nn.Module) -> nn.Module:
        """`network`, made of these networks, with the unfamiliarity of each image as a last column of its answer."""
        return _WithUnfamiliarity(network, self).eval()

    def least_probability(self, coverage: float) -> float:
        """What a type's calibrated probability must reach to be in an image's set; see trainer/metrics/conformal.py."""
        return least_probability(self.probabilities, self.labels, coverage)


class _WithUnfamiliarity(nn.Module):
    """Images float32 [n, 3, S, S] in [-1, 1] -> logits and unfamiliarity, float32 [n, types + 1].

    Of several views of an image, the first, the image as it is, is compared.
    """

    def __init__(self, network: nn.Module, uncertainty: Uncertainty) -> None:
        super().__init__()
        self.network = network
        self.distances = nn.ModuleList(uncertainty.distances)
        self._uncertainty = uncertainty

    def forward(self, images: Tensor) -> Tensor:
        with ExitStack() as stack:
            seen = [stack.enter_context(watch_layers(each)) for each in self._uncertainty.networks]
            logits = self.network(images).float()
        unfamiliarity = torch.full((len(images),), self._uncertainty.offset, device=logits.device)
        for distance, weight, layers in zip(self.distances, self._uncertainty.weights, seen, strict=True):
            unfamiliarity += weight * distance(torch.cat([each[: len(images)] for each in layers], dim=1).float())
        return torch.cat([logits, unfamiliarity[:, None]], dim=1)
