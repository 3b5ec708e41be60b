"""How near normalised validation images come to real ones of the other domain: what stain runs are compared by."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Topology
from trainer.loop.selection import Selection
from trainer.runs.validation_distance import ValidationDistance, by_distance, validation_images
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.images import read_images

_BATCH = 64


class StainDistance:
    """Kernel distance in both directions, over the types that both domains have in their validation splits."""

    def __init__(self, dataset: Dataset, config: StainRunConfig, cell_types: Sequence[str], topology: Topology) -> None:
        self._dataset, self._config, self._topology = dataset, config, topology
        self._images = _shared_images(dataset, config, cell_types)
        types = list(next(iter(self._images.values())))
        self._distances = {
            domain: ValidationDistance(dataset, _only(config, domain), types, None, topology) for domain in self._images
        }

    def scores(self, into_domains: tuple[nn.Module, nn.Module]) -> dict[str, float]:
        """kernel_distance, the mean of both directions; empty with too few images. into_domains: (to_a, to_b)."""
        a, b = self._images
        found = []
        for source, target, network in ((b, a, into_domains[0]), (a, b, into_domains[1])):

            def make(cell_type: str, count: int, source: str = source, network: nn.Module = network) -> torch.Tensor:
                ids, data = self._images[source][cell_type][:count], _only(self._config, source)
                batches = read_images(self._dataset, ids, data, _BATCH, self._topology.device)
                return torch.cat([network(images) for _, images in batches])

            found.append(self._distances[target].scores(make))
        known = [scores["kernel_distance"] for scores in found if scores]
        return {"kernel_distance": sum(known) / 2} if len(known) == 2 else {}


def stain_selection(dataset: Dataset, config: StainRunConfig, cell_types: Sequence[str]) -> Selection | None:
    """By the smallest distance; None with too few validation images, or where folds decide what is learned from."""
    found = [by_distance(images) for images in _shared_images(dataset, config, cell_types).values()]
    return None if config.folds or None in found else found[0]


def _only(config: StainRunConfig, domain: str) -> StreamConfig:
    return dataclasses.replace(config.data, domains=[domain], cell_types=None)


def _shared_images(
    dataset: Dataset, config: StainRunConfig, cell_types: Sequence[str]
) -> dict[str, Mapping[str, list[str]]]:
    """Domain, a then b -> type that both have -> ids of validation images."""
    both = {
        domain: validation_images(dataset, _only(config, domain), cell_types)
        for domain in (str(config.a), str(config.b))
    }
    shared = [name for name in cell_types if all(images[name] for images in both.values())]
    return {domain: {name: images[name] for name in shared} for domain, images in both.items()}
