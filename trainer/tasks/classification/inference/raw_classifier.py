"""A classifier for raw images of one stain: of a run, of several runs, or one that was exported."""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from trainer.tasks.classification.inference.ensemble import Ensemble
from trainer.tasks.classification.inference.load import TrainedClassifier
from trainer.tasks.classification.inference.scale import nucleus_of_files
from trainer.tasks.classification.uncertainty.calibration import Calibrated
from trainer.tasks.classification.uncertainty.reference import Uncertainty

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
    classifier: nn.Module | None = None  # a single run's network, if it sees each image once; None for an export
    normalizers: tuple[NormalizerBundle | None, ...] = (None,)  # of each run, where it is part of `network`
    domain: str | None = None  # stain of the images; None: not known
    uncertainty: Uncertainty | None = None  # None for an export, and for runs that keep no reference


def of_ensemble(ensemble: Ensemble, domain: str | None, paths: Sequence[Path] = ()) -> RawClassifier:
    """The calibrated classifier of one run or several for images of a stain, with the normalisers made for the stain.

    domain: default, a run's only one, or an unknown one (see `TrainedClassifier.crop_of`). UserError for a domain that
    no run knows, and for none where a normaliser changes one of several. paths: the images, by whose nuclei they are
    cropped if no domain is named and a run's training images were, too.
    """
    first, nucleus = ensemble.members[0], None
    if domain is None and paths and ensemble.takes_nucleus_of(None):
        nucleus = nucleus_of_files(paths, first.storage)
    domains = [
        None
        if nucleus is not None and each.config.nucleus_share is not None
        else resolve_domain(ensemble.members, each, domain)
        for each in ensemble.members
    ]
    ensemble.tell_if_uncalibrated()
    answering, temperature = ensemble.answering(domains, nucleus), ensemble.calibration.temperature
    return RawClassifier(
        Calibrated(answering.network, temperature).eval(),
        ensemble.cell_types,
        first.storage,
        replace(first.config.data, image_size=answering.image_size),
        answering.crop,
        ensemble.batch,
        temperature,
        classifier=ensemble.plain,
        normalizers=answering.normalizers,
        domain=domains[0] if len(set(domains)) == 1 else None,
        uncertainty=ensemble.uncertainty,
    )


def resolve_domain(members: Sequence[TrainedClassifier], trained: TrainedClassifier, domain: str | None) -> str | None:
    """The stain of the images as one of the members takes them; None: any. A domain is known if one member knows it."""
    if domain is not None:
        if known := set().union(*map(_known_domains, members)):
            refuse_unknown_domains([domain], known, f"domain={domain} and {members[0].config.run}")
        return domain
    known = _known_domains(trained)
    if len(known) == 1:
        return known.pop()
    if trained.normalizer is not None:
        raise UserError(
            f"{trained.config.run}: its normaliser changes images by their domain: name the domain of "
            f"these images, domain=NAME, one of {', '.join(sorted(known))}"
        )
    return None


def _known_domains(trained: TrainedClassifier) -> set[str]:
    known = set(trained.domains)
    # Its training images were normalised ones; it takes the raw ones of both stains.
    for normalizer in trained.normalizer.directions if trained.normalizer is not None else ():
        known -= {normalized_domain(normalizer.source, normalizer.target)}
        known |= {normalizer.source, normalizer.target}
    return known


def load_raw_classifier(
    folders: Sequence[Path], domain: str | None, views: int = 1, paths: Sequence[Path] = ()
) -> RawClassifier:
    """The classifier of a run, of several, or of a folder that export.py wrote, which is for one stain.

    domain, paths: see `of_ensemble`.
    UserError for a folder that is neither, for runs that cannot answer together, and for an export that is damaged,
    for another stain than `domain`, or to be combined: it has its views and runs inside.
    """
    exported = [folder for folder in folders if (folder / DESCRIPTION).exists()]
    if not exported:
        return of_ensemble(Ensemble.load(folders, views), domain, paths)
    folder = exported[0]
    if len(folders) > 1 or views > 1:
        raise UserError(
            f"{folder}: an export takes no other runs and no views=: give them to export.py, which puts them into it"
        )
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
            max(1, _BATCH // facts.get("views", 1)),
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
