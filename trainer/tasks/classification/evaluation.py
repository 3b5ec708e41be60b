"""Scoring a trained classifier on a data set, with the evidence kept beside the score (contract C14)."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import distributed, nn
from torch.nn import functional

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import SeenImages
from data_pipeline.lineage import normalization, normalization_needs_label
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from trainer.loop.checkpoint import Checkpoint
from trainer.metrics.evaluation import HEAT, predictions_frame, shown_cells
from trainer.runs.normalizers.bundle import NormalizerBundle
from trainer.tasks.classification.algorithms.cross_entropy import predict
from trainer.tasks.classification.calibration import Calibration, calibrated_probabilities
from trainer.tasks.classification.grad_cam import GradCam, predict_with_heat


def scoring_stream(
    dataset: Dataset,
    config: StreamConfig,
    *,
    splits: Sequence[str],
    cell_types: Sequence[str],
    batch: int,
    topology: Topology,
    folds: Sequence[int] | None = None,
    left_out: Collection[str] = (),
) -> Stream:
    """A stream that shows each image of the splits once, `batch` per process at a time; left_out: ids of those not.

    UserError when there is none, or a synthetic one among them: those are never scored.
    """
    origins = dataset.samples(splits=splits, domains=config.domains, columns=["origin"])["origin"]
    if (origins == "synthetic").any():
        raise UserError(f"{dataset.root}: split {'/'.join(splits)} holds synthetic images, which are never scored")
    ids = None
    if left_out:
        every = dataset.samples(splits=splits, domains=config.domains, folds=folds, columns=["id"])["id"]
        ids = every[~every.isin(list(left_out))].tolist()
    return Stream(
        dataset,
        config,
        splits=splits,
        cell_types=cell_types,
        ids=ids,
        global_batch=batch * topology.world_size,
        training=False,
        topology=topology,
        folds=folds,
    )


def predict_all(classifier: nn.Module, stream: Stream) -> torch.Tensor:
    """Logits float32 [n, types] of the stream's samples, in its table's order, on every process."""
    mine = predict(classifier, stream.read())
    parts: list[Any] = [mine]
    if distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, mine)
    filled = [part for part in parts if len(part[1])]
    logits, rows = (torch.cat(pieces) for pieces in zip(*filled, strict=True))
    return logits[rows.argsort()]


def validation_scores(classifier: nn.Module, stream: Stream) -> dict[str, float]:
    """`loss` (mean negative log likelihood), `accuracy` and `balanced_accuracy` on a stream's samples."""
    probabilities = predict_all(classifier, stream).softmax(dim=1)
    labels = torch.tensor(stream.labels)
    correct = probabilities.argmax(dim=1) == labels
    recalls = [correct[labels == label].double().mean() for label in labels.unique()]
    return {
        "loss": functional.nll_loss(probabilities.clamp_min(1e-12).log(), labels).item(),
        "accuracy": correct.double().mean().item(),
        "balanced_accuracy": torch.stack(recalls).mean().item(),
    }


class NormalizedClassifier(nn.Module):
    """A classifier of normalised images, for raw ones: normaliser, resizing, classifier."""

    def __init__(self, classifier: nn.Module, normalizer: NormalizerBundle, image_size: int) -> None:
        super().__init__()
        self.classifier = classifier
        # One of this module's own where it is one, to be moved and exported with it.
        self.generator = getattr(normalizer.normalizer, "network", None)
        self._normalizer = normalizer
        self._image_size = image_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float32 [n, 3, S, S] in [-1, 1], S the normaliser's -> logits [n, types]."""
        normalized = self._normalizer.normalizer(images)
        if normalized.shape[-1] != self._image_size:
            size = (self._image_size, self._image_size)
            normalized = functional.interpolate(normalized, size, mode="bilinear", antialias=True)
        logits: torch.Tensor = self.classifier(normalized)
        return logits


def evaluate(
    classifier: nn.Module,
    checkpoint: Checkpoint,
    dataset: Dataset,
    config: StreamConfig,
    *,
    splits: Sequence[str],
    cell_types: Sequence[str],
    batch: int,
    topology: Topology,
    calibration: Calibration,
    seen: SeenImages,
    normalizer: NormalizerBundle | None = None,
    folds: Sequence[int] | None = None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Score real images of the types the classifier knows; count those it does not.

    calibration: what makes its logits probabilities; the scores are of these, and `calibration` in the result holds
    the calibration's own, of the probabilities without it too.
    seen: what comparing the images with those that the classifier learned from gave; those it had seen are left out.
    normalizer: what the classifier's training images went through; raw images of its source domain go
    through it first.
    Returns the evaluation as it is written to JSON, and one row of probabilities per image, on the first process with
    the heat of the cells that a report shows (see trainer.tasks.classification.grad_cam).
    """
    # Here: training before it need not wait for torchmetrics.
    from trainer.metrics.classification import score, trust

    domains_here = set(dataset.samples(columns=["domain"])["domain"])
    crop = {domain: share for domain, share in config.crop.items() if domain in domains_here}
    config = replace(config, cell_types=None, crop=crop)
    everything = dataset.samples(
        splits=splits, domains=config.domains, folds=folds, columns=["id", "cell_type", "origin", "domain"]
    )
    everything = everything[~everything["id"].isin(list(seen.through))]
    _refuse_label_normalized(dataset, everything)
    counts = everything["cell_type"].replace("", "unlabelled").value_counts()
    not_scored = {name: int(count) for name, count in counts.items() if name not in cell_types}
    raw = normalizer.source if normalizer is not None else None
    here = set(everything[everything["cell_type"].isin(cell_types)]["domain"])
    passes: list[tuple[nn.Module, StreamConfig]] = []
    if normalizer is not None and raw in here:
        raw_images = replace(
            config,
            domains=[normalizer.source],
            image_size=normalizer.image_size,
            crop={normalizer.source: normalizer.crop},
        )
        passes.append((NormalizedClassifier(classifier, normalizer, config.image_size), raw_images))
    plain = sorted(here - {raw})
    if plain or not passes:
        passes.append((classifier, replace(config, domains=plain or config.domains)))
    tables, parts = [], []
    for network, shown in passes:
        stream = scoring_stream(
            dataset,
            shown,
            splits=splits,
            cell_types=cell_types,
            batch=batch,
            topology=topology,
            folds=folds,
            left_out=seen.through,
        )
        parts.append(predict_all(network, stream))
        tables.append(stream.samples)
    samples, logits = pd.concat(tables, ignore_index=True), torch.cat(parts)
    answers = calibrated_probabilities(logits, calibration.temperature).numpy()
    labels = samples["cell_type"].map({name: number for number, name in enumerate(cell_types)}).to_numpy(np.int64)
    groups = samples["group"].tolist()
    split = "+".join(splits) + (f"-folds{'+'.join(map(str, folds))}" if folds is not None else "")
    result = {
        "dataset": {
            "path": dataset.address,
            "content_hash": dataset.content_hash,
            "split": split,
            "domains": sorted(samples["domain"].unique().tolist()),
            "count": len(samples),
        },
        "checkpoint": {"file": checkpoint.path.name, "step": checkpoint.step, "sha256": checkpoint.digest},
        "normalizer": _normalizer_of(dataset, samples, everything, normalizer),
        "cell_types": list(cell_types),
        "not_scored": not_scored,
        "seen_images": seen.as_record(),
        "scores": score(answers, labels, groups, cell_types),
        "calibration": {
            "temperature": calibration.temperature,
            "validation_images": calibration.images,
            "remark": calibration.remark,
            "uncalibrated": trust(calibrated_probabilities(logits, 1.0).numpy(), labels, groups, cell_types),
        },
    }
    frame = predictions_frame(samples, answers, cell_types)
    if topology.rank == 0:
        heat = _heat_of_shown(frame, passes, classifier, dataset, cell_types, topology, batch)
        frame[HEAT] = frame["id"].map(heat).astype(object)
    return result, frame


def _heat_of_shown(
    frame: pd.DataFrame,
    passes: Sequence[tuple[nn.Module, StreamConfig]],
    classifier: nn.Module,
    dataset: Dataset,
    cell_types: Sequence[str],
    topology: Topology,
    batch: int,
) -> dict[str, bytes]:
    """Id -> heat of the cells that a report shows; nothing for a network without feature maps."""
    shown = pd.concat(shown_cells(frame, cell_types))
    heat: dict[str, bytes] = {}
    for network, seen in passes:
        domains = set(shown["domain"]) & set(seen.domains or shown["domain"])
        for domain in sorted(domains):
            try:
                grad_cam = GradCam(network, classifier, seen.image_size, topology.device)
            except UserError:
                return {}
            crop = seen.crop.get(domain, 1.0)
            stream = Stream(
                dataset,
                replace(seen, domains=[domain], crop={domain: crop}),
                splits=None,
                cell_types=cell_types,
                ids=shown.loc[shown["domain"] == domain, "id"].tolist(),
                global_batch=batch,
                training=False,
                topology=Topology(device=topology.device),
            )
            _, rows, found = predict_with_heat(grad_cam, stream.read(), crop)
            heat |= dict(zip(stream.samples["id"].iloc[rows.numpy()], found, strict=True))
    return heat


def _normalizer_of(
    dataset: Dataset, samples: pd.DataFrame, everything: pd.DataFrame, normalizer: NormalizerBundle | None
) -> dict[str, Any] | None:
    """What normalised the images that were scored: on the way to the classifier, or in the data set."""
    if normalizer is not None and normalizer.source in set(samples["domain"]):
        return normalizer.describe() | {"images_it_learned_from": normalizer.count_seen(dataset, samples)}
    if (everything["origin"] == "normalized").any():
        return dict(normalization(dataset))
    return None


def _refuse_label_normalized(dataset: Dataset, rows: pd.DataFrame) -> None:
    if normalization_needs_label(dataset) and (rows["origin"] == "normalized").any():
        raise UserError(
            f"{dataset.root}: images of this split were normalised by policy=thesis, which needed their labels: they "
            "are never scored; score split=test, or a data set normalised by policy=to_a"
        )
