"""Each image of a stream once, and a network's logits for it."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import distributed, nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.augmentations import Augmentation
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import MicroBatch, Stream, Topology
from trainer.loop.fit_config import FitConfig


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
    operations: Sequence[Augmentation] = (),
) -> Stream:
    """A stream of each image of the splits once, `batch` per process at a time; left_out: ids of images to skip.

    operations: change the images.
    UserError for no image, and for synthetic images, which are never scored.
    """
    origins = dataset.samples(splits=splits, domains=config.domains, columns=["origin"])["origin"]
    if (origins == "synthetic").any():
        raise UserError(
            f"{dataset.root}: split {'/'.join(splits)} holds synthetic images, which are never scored; choose another "
            "split="
        )
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
        operations=operations,
    )


def scoring_batch(config: FitConfig) -> int:
    """Images a rank scores at a time. Scoring keeps no gradients, so what training fits fits here."""
    return config.micro_batch or min(config.global_batch, 128)


@torch.no_grad()
def predict(classifier: nn.Module, batches: Iterable[MicroBatch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [n, types] and rows int64 [n] of all images in `batches`, on the CPU."""
    classifier.eval()
    logits, rows = [], []
    for batch in batches:
        logits.append(classifier(batch.images).float().cpu())
        rows.append(torch.from_numpy(batch.rows))
    if not rows:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    return torch.cat(logits), torch.cat(rows)


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
