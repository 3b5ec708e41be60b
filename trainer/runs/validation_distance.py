"""How near a generator's images come to real validation images: what its best checkpoint is chosen by."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from data_pipeline.catalog import Dataset
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from trainer.loop.selection import Selection
from trainer.metrics.generation import extract_features, kernel_distance
from trainer.runs.feature_spaces import open_space

# With fewer validation images a distance is chance, and the last checkpoint is taken.
FEWEST = 8
_BATCH = 64

# Cell type, number of images -> images float32 [n, 3, S, S] in [-1, 1].
Make = Callable[[str, int], torch.Tensor]


class ValidationDistance:
    """Compares as many generated images of each type as the validation split holds, in one feature space."""

    def __init__(
        self, dataset: Dataset, data: StreamConfig, cell_types: Sequence[str], features: str | None, topology: Topology
    ) -> None:
        """data: how the generator reads its images. features: see `open_space`. UserError for a space that is none."""
        ids = validation_images(dataset, data, cell_types)
        self.selection = by_distance(ids)
        self.counts = {name: len(of_type) for name, of_type in ids.items() if of_type}
        self._topology = topology
        if self.selection is None or topology.rank > 0:
            return
        self._space, self._names = open_space(features)
        self._space.to(topology.device)
        stream = Stream(
            dataset,
            dataclasses.replace(data, cell_types=None, sampling="uniform"),
            splits=["validation"],
            cell_types=list(self.counts),
            ids=[identity for of_type in ids.values() for identity in of_type],
            global_batch=_BATCH,
            training=False,
            topology=Topology(device=topology.device),
        )
        real = extract_features(self._space, (batch.images for batch in stream.read())).features
        # The kernel is meant for features around 1, as Inception's are. One scale for all: some vary in no real image.
        self._mean, self._deviation = real.mean(axis=0), np.sqrt(real.var(axis=0).mean())
        self._real = (real - self._mean) / self._deviation

    def scores(self, make: Make) -> dict[str, float]:
        """kernel_distance (KID's formula, of features of mean variance 1 among the validation images).

        In a classifier's features also agreement: the share of images to which it gives the type asked for. Equal on
        all ranks; rank 0 makes the images. Empty with too few validation images.
        """
        if self.selection is None:
            return {}
        scores = self._compare(make) if self._topology.rank == 0 else {}
        if self._topology.world_size > 1:
            (scores,) = broadcast_object_list([scores])
        return scores

    @torch.no_grad()
    def _compare(self, make: Make) -> dict[str, float]:
        made = extract_features(self._space, (make(name, count) for name, count in self.counts.items()))
        scaled = (made.features - self._mean) / self._deviation
        scores = {"kernel_distance": kernel_distance(self._real, scaled, len(scaled))[0]}
        if self._names:
            asked = np.repeat(np.array(list(self.counts)), list(self.counts.values()))
            scores["agreement"] = float((np.array(self._names)[made.probabilities.argmax(axis=1)] == asked).mean())
        return scores


def by_distance(ids: Mapping[str, Sequence[str]], patience: int | None = None) -> Selection | None:
    """Choice by the smallest distance from these images of each type; None where they are too few."""
    enough = sum(map(len, ids.values())) >= FEWEST
    return Selection("kernel_distance", higher_is_better=False, patience=patience) if enough else None


def validation_images(dataset: Dataset, data: StreamConfig, cell_types: Sequence[str]) -> Mapping[str, list[str]]:
    """Ids of each type's validation images, in the domains of `data`."""
    rows = dataset.samples(
        splits=["validation"], domains=data.domains, cell_types=cell_types, columns=["id", "cell_type"]
    )
    return {name: rows["id"][rows["cell_type"] == name].tolist() for name in cell_types}
