"""What classifiers say of images that they have not learned from: a training without each fold in turn."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.catalog import Dataset
from data_pipeline.progress_bar import track
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import Stream, Topology
from trainer.learners.learner import Setting
from trainer.learners.topology import resolve_precision
from trainer.loop.algorithm import GlobalBatch
from trainer.metrics.feature_space import ClassifierFeatures
from trainer.tasks.classification.algorithms.cross_entropy import CrossEntropy
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.load import build_network


@dataclass(frozen=True)
class HeldOut:
    """A fold's images, seen by a classifier that learned from the other folds."""

    rows: NDArray[np.int64]  # [m], of the stream's sample table
    features: NDArray[np.float32]  # [m, d], input of the last layer
    probabilities: NDArray[np.float32]  # [m, types]


def cross_fit(
    config: ClassifierRunConfig, dataset: Dataset, shown: Stream, folds: list[NDArray[np.int64]], topology: Topology
) -> Iterator[HeldOut]:
    """Train `config.train.epochs` epochs without each fold; then judge its images, unaugmented.

    shown: each image once; folds: rows of its sample table. One process.
    """
    ids = shown.samples["id"]
    for number, held in enumerate(folds):
        stream = _part(dataset, shown, config, ids.drop(index=held.tolist()).tolist(), training=True)
        torch.manual_seed(derive_key(config.seed, "weights", number))
        network = build_network(config.model, len(shown.cell_types), config.data.image_size)
        setting = Setting(
            resolve_precision(config.train.precision, topology.device),
            config.train.epochs * stream.batches_per_epoch,
            stream.global_batch,
            config.seed,
            topology=topology,
        )
        algorithm = CrossEntropy(network, config, setting)
        iterator = stream.read()
        batches = {"train": (GlobalBatch(iterator, stream.parts) for _ in itertools.count())}
        for _ in track(range(setting.total_steps), setting.total_steps, f"fold {number + 1} of {len(folds)}", "step"):
            algorithm.step(batches, detailed=False)
        yield _look(algorithm, _part(dataset, shown, config, ids[held].tolist(), training=False), held, config)


def _part(dataset: Dataset, shown: Stream, config: ClassifierRunConfig, ids: list[str], *, training: bool) -> Stream:
    return Stream(
        dataset,
        config.data,
        splits=None,
        cell_types=shown.cell_types,
        ids=ids,
        global_batch=min(config.train.global_batch, len(ids)),
        micro_batch=config.train.micro_batch,
        seed=config.seed,
        training=training,
    )


@torch.no_grad()
def _look(algorithm: CrossEntropy, stream: Stream, held: NDArray[np.int64], config: ClassifierRunConfig) -> HeldOut:
    space = ClassifierFeatures(algorithm.learners["classifier"].average, "", config.data.image_size)
    rows: list[Any] = []
    seen = []
    for batch in stream.read():
        rows.append(held[batch.rows])
        seen.append([each.float().cpu().numpy() for each in space(batch.images)])
    features, probabilities = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    return HeldOut(np.concatenate(rows), features, probabilities)
