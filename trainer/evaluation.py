"""Scoring a trained classifier on a data set, with the evidence kept beside the score (contract C14)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import distributed, nn
from torch.nn import functional

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream import Stream, StreamConfig, Topology
from trainer.checkpoint import Checkpoint
from trainer.games.classification import predict
from trainer.metrics.classification import score
from trainer.metrics.evaluation import predictions_frame


def scoring_stream(
    dataset: Dataset,
    config: StreamConfig,
    *,
    splits: Sequence[str],
    cell_types: Sequence[str],
    batch: int,
    topology: Topology,
) -> Stream:
    """A stream that shows each image of the splits once, `batch` per process at a time.

    UserError when there is none, or a synthetic one among them: those are never scored.
    """
    origins = dataset.samples(splits=splits, domains=config.domains, columns=["origin"])["origin"]
    if (origins == "synthetic").any():
        raise UserError(f"{dataset.root}: split {'/'.join(splits)} holds synthetic images, which are never scored")
    return Stream(
        dataset,
        config,
        splits=splits,
        cell_types=cell_types,
        global_batch=batch * topology.world_size,
        training=False,
        topology=topology,
    )


def predict_all(classifier: nn.Module, stream: Stream) -> torch.Tensor:
    """Probabilities float32 [n, types] of the stream's samples, in its table's order, on every process."""
    mine = predict(classifier, stream.read())
    parts: list[Any] = [mine]
    if distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, mine)
    filled = [part for part in parts if len(part[1])]
    probabilities, rows = (torch.cat(pieces) for pieces in zip(*filled, strict=True))
    return probabilities[rows.argsort()]


def validation_scores(classifier: nn.Module, stream: Stream) -> dict[str, float]:
    """`loss` (mean negative log likelihood), `accuracy` and `balanced_accuracy` on a stream's samples."""
    probabilities = predict_all(classifier, stream)
    labels = torch.tensor(stream.labels)
    correct = probabilities.argmax(dim=1) == labels
    recalls = [correct[labels == label].double().mean() for label in labels.unique()]
    return {
        "loss": functional.nll_loss(probabilities.clamp_min(1e-12).log(), labels).item(),
        "accuracy": correct.double().mean().item(),
        "balanced_accuracy": torch.stack(recalls).mean().item(),
    }


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
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Score real images of the types the classifier knows; count those it does not.

    Returns the evaluation as it is written to JSON, and one row of probabilities per image.
    """
    everything = dataset.samples(splits=splits, domains=config.domains, columns=["cell_type", "origin"])
    counts = everything["cell_type"].replace("", "unlabelled").value_counts()
    not_scored = {name: int(count) for name, count in counts.items() if name not in cell_types}
    stream = scoring_stream(
        dataset,
        replace(config, cell_types=None),
        splits=splits,
        cell_types=cell_types,
        batch=batch,
        topology=topology,
    )
    probabilities = predict_all(classifier, stream).numpy()
    samples = stream.samples
    result = {
        "dataset": {
            "path": str(dataset.root.resolve()),
            "content_hash": dataset.content_hash,
            "split": "+".join(splits),
            "domains": sorted(samples["domain"].unique().tolist()),
            "count": len(samples),
        },
        "checkpoint": {"file": checkpoint.path.name, "step": checkpoint.step, "sha256": checkpoint.digest},
        "normalizer": None,
        "cell_types": list(cell_types),
        "not_scored": not_scored,
        "scores": score(probabilities, stream.labels, samples["group"].tolist(), cell_types),
    }
    return result, predictions_frame(samples, probabilities, cell_types)


def refuse_training_images(
    run_dataset: Dataset,
    trained: StreamConfig,
    dataset: Dataset,
    scored_domains: Sequence[str] | None,
    splits: Sequence[str],
) -> None:
    """UserError when a group that the run trained or was chosen on stands among the images to be scored."""
    learned = run_dataset.samples(
        splits=["train", "validation"], domains=trained.domains, cell_types=trained.cell_types, columns=["id", "group"]
    )
    scored = dataset.samples(splits=splits, domains=scored_domains, columns=["id", "group"])
    same_data = run_dataset.content_hash == dataset.content_hash
    seen = scored["id"].isin(learned["id"]) | (same_data & scored["group"].isin(learned["group"]))
    if seen.any():
        raise UserError(
            f"{int(seen.sum())} of the {len(scored)} images of split {'/'.join(splits)} in {dataset.root} were "
            "used to train or choose this classifier: score split=test, or name a domain it was not trained on"
        )
