"""Sample sheets of a stain run: real, normalised and reconstructed cells of each type (figures 41-46)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.stream.stream import Stream
from trainer.reports.sheets import draw_sheet
from trainer.runs.registry import algorithm_class
from trainer.tasks.stain.config import StainRunConfig


class StainSheets:
    """Draws the same cells again and again: of each type the first few, validation images before training ones."""

    def __init__(self, dataset: Dataset, config: StainRunConfig, cell_types: Sequence[str], run: Path) -> None:
        self._config = config
        self._folder = run / "samples"
        self._cells = {
            domain: _choose(dataset, config, domain, [name for name in cell_types if name])
            for domain in (str(config.a), str(config.b))
        }

    @torch.no_grad()
    def draw(self, generators: nn.Module, device: torch.device, step: int) -> None:
        """Write `step-<n>-<from>-to-<to>.png` for both directions; generators: the module of the algorithm."""
        generators.eval()
        to_a, to_b = algorithm_class("stain", self._config.model.algorithm).into_domains(generators)
        a, b = str(self._config.a), str(self._config.b)
        for source, target, there, back in ((b, a, to_a, to_b), (a, b, to_b, to_a)):
            images, labels = self._cells[source]
            if not labels:
                continue
            normalized = there(images.to(device))
            columns = [images, normalized, back(normalized)]
            titles = [source, f"as {target}", "and back"]
            draw_sheet(self._folder / f"step-{step:09d}-{source}-to-{target}.png", titles, columns, labels)


def _choose(
    dataset: Dataset, config: StainRunConfig, domain: str, cell_types: Sequence[str]
) -> tuple[torch.Tensor, list[str]]:
    """Images float32 [n, 3, S, S] and their types, `samples_per_type` of each where there are as many."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in cell_types}
    for split in ("validation", "train"):
        rows = dataset.samples(splits=[split], domains=[domain], cell_types=cell_types, columns=["id"])
        if len(rows) == 0:
            continue
        stream = Stream(
            dataset,
            dataclasses.replace(config.data, domains=[domain], cell_types=None),
            splits=[split],
            cell_types=cell_types,
            global_batch=min(len(rows), 32),
            training=False,
        )
        for batch in stream.read():
            for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
                if len(found[cell_types[label]]) < config.samples_per_type:
                    found[cell_types[label]].append(image.clone())
            if all(len(images) >= config.samples_per_type for images in found.values()):
                break
    images = [image for name in cell_types for image in found[name]]
    labels = [name for name in cell_types for _ in found[name]]
    return (torch.stack(images) if images else torch.empty(0)), labels
