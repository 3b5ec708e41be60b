"""A classifier for raw images of one stain: a run's, or one that was exported from a run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline.disk import checked
from data_pipeline.domains import refuse_unknown_domains
from data_pipeline.errors import UserError
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.config import StreamConfig
from data_pipeline.threads import thread_share
from trainer.runs.normalizers.bundle import NormalizerBundle, normalized_domain
from trainer.runs.run_directory import DESCRIPTION
from trainer.tasks.classification.calibration import Calibrated
from trainer.tasks.classification.evaluation import NormalizedClassifier, scoring_batch
from trainer.tasks.classification.load import TrainedClassifier, load_classifier, tell_if_uncalibrated

FORMAT_VERSION = 1
# A format -> the file of its model.
MODEL_FILES = {"onnx": "model.onnx", "torch_export": "model.pt2"}
_BATCH = 64


@dataclass(frozen=True)
class RawClassifier:
    """A classifier, and how raw images are prepared for it."""

    network: nn.Module  # images float32 [n, 3, S, S] in [-1, 1] -> logits [n, types], divided by the temperature
    cell_types: tuple[str, ...]
    storage: ShardSettings  # codec and size that images are first stored with, as the training images were
    data: StreamConfig  # image size S, and how images are decoded
    crop: float  # share of the images' sides that is kept
    batch: int  # images at a time
    temperature: float
    classifier: nn.Module | None = None  # the network without normaliser and temperature; None for an export
    normalizer: NormalizerBundle | None = None  # the one that is part of `network`
    domain: str | None = None  # stain of the images; None: not known


def of_run(trained: TrainedClassifier, domain: str | None) -> RawClassifier:
    """A run's calibrated classifier for images of a stain, with its normaliser where that is made for the stain.

    domain: default, the run's only one, or all of several that are prepared alike. UserError for a domain that the run
    does not know, and for none where domains are prepared differently.
    """
    domain = resolve_domain(trained, domain)
    tell_if_uncalibrated(trained)
    network, data = trained.network, trained.config.data
    crop = data.crop.get(domain or "", 1.0)
    normalizer = trained.normalizer if trained.normalizer is not None and domain == trained.normalizer.source else None
    if normalizer is not None:
        network = NormalizedClassifier(network, normalizer, data.image_size).eval()
        data, crop = replace(data, image_size=normalizer.image_size), normalizer.crop
    temperature = trained.calibration.temperature
    return RawClassifier(
        Calibrated(network, temperature).eval(),
        trained.cell_types,
        trained.storage,
        data,
        crop,
        scoring_batch(trained.config.train),
        temperature,
        classifier=trained.network,
        normalizer=normalizer,
        domain=domain,
    )


def resolve_domain(trained: TrainedClassifier, domain: str | None) -> str | None:
    """The stain of the images to classify; None: any."""
    known, normalizer, crop = set(trained.domains), trained.normalizer, trained.config.data.crop
    if normalizer is not None:  # its training images were normalised ones; it takes the raw ones of both stains
        known -= {normalized_domain(normalizer.source, normalizer.target)}
        known |= {normalizer.source, normalizer.target}
    if domain is not None:
        if known:
            refuse_unknown_domains([domain], known, f"domain={domain} and {trained.config.run}")
        return domain
    if len(known) == 1:
        return known.pop()
    if normalizer is not None or len({crop.get(name, 1.0) for name in known}) > 1:
        raise UserError(
            f"{trained.config.run}: its domains' images are not prepared alike (a crop or a normaliser): name the "
            f"domain of these images, domain=NAME, one of {', '.join(sorted(known))}"
        )
    return None


def load_raw_classifier(folder: Path, domain: str | None) -> RawClassifier:
    """The classifier of a run, or of a folder that export.py wrote, which is for one stain and needs no `domain`.

    UserError for a folder that is neither, and for an export that is damaged or for another stain than `domain`.
    """
    if not (folder / DESCRIPTION).exists():
        return of_run(load_classifier(folder), domain)
    try:
        facts = checked(json.loads((folder / DESCRIPTION).read_text()))
        if facts["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{folder}: exported in format {facts['format_version']}, not {FORMAT_VERSION}: export the run again"
            )
        if domain is not None and domain != facts["domain"]:
            raise UserError(
                f"{folder}: exported for images of {facts['domain'] or 'any stain'}, not {domain}: leave domain= out, "
                "or export the run again with it"
            )
        return RawClassifier(
            _load_network(folder, facts),
            tuple(facts["cell_types"]),
            ShardSettings(**facts["storage"]),
            StreamConfig(image_size=facts["image_size"]),
            facts["crop"],
            _BATCH,
            facts["temperature"],
            domain=facts["domain"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not an export, or damaged ({error}): export the run again") from error


def _load_network(folder: Path, facts: Mapping[str, Any]) -> nn.Module:
    path = folder / MODEL_FILES[facts["format"]]
    if hashlib.sha256(path.read_bytes()).hexdigest() != facts["sha256"]:
        raise ValueError(f"the bytes of {path.name} are not those that were written")
    return _Logits(_OnnxModel(path) if facts["format"] == "onnx" else torch.export.load(path).module())


class _Logits(nn.Module):
    """Logarithms of an exported model's probabilities: its logits, up to a constant for each image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def train(self, mode: bool = True) -> "_Logits":
        return self  # an exported program has one mode, and raises on a change

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        probabilities: torch.Tensor = self._model(images)
        return probabilities.log()


class _OnnxModel(nn.Module):
    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = thread_share().threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (probabilities,) = self._session.run(None, {"images": images.cpu().numpy()})
        return torch.from_numpy(probabilities)
