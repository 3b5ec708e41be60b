"""Sample sheets of a run that makes cells: real and generated ones of each type side by side (figure 47)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.stream.stream import Stream
from trainer.reports.sheets import draw_sheet
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.conditional.load import latents, make_images


class ConditionalSheets:
    """Draws one row for each type, real images left, generated ones right: from the same latents each time."""

    def __init__(self, dataset: Dataset, config: ConditionalRunConfig, cell_types: Sequence[str], run: Path) -> None:
        self._config = config
        self._cell_types = cell_types
        self._folder = run / "samples"
        self._real = [_training_images(dataset, config, name) for name in cell_types]

    def draw(self, generator: nn.Module, conditions: Sequence[int], device: torch.device, step: int) -> None:
        """Write `step-<n>.png`. conditions: what the generator is given for each type."""
        count, size = self._config.samples_per_type, self._config.model.generator.latent_size
        generator.eval()
        indices = np.arange(count)
        generated = [
            make_images(generator, condition, latents(self._config.seed, name, indices, size).to(device), indices)
            for name, condition in zip(self._cell_types, conditions, strict=True)
        ]
        columns = [*torch.stack(self._real).unbind(1), *torch.stack(generated).unbind(1)]
        blank = [""] * (count - 1)
        titles = ["real", *blank, "generated", *blank]
        draw_sheet(self._folder / f"step-{step:09d}.png", titles, columns, self._cell_types)


def _training_images(dataset: Dataset, config: ConditionalRunConfig, cell_type: str) -> torch.Tensor:
    """The type's first training images, float32 [samples_per_type, 3, S, S]; white where it has fewer."""
    rows = dataset.samples(
        splits=["train"], domains=config.data.domains, cell_types=[cell_type], columns=["id", "origin"]
    )
    ids = rows["id"][rows["origin"] != "synthetic"].tolist()[: config.samples_per_type]
    stream = Stream(
        dataset,
        dataclasses.replace(config.data, cell_types=None),
        splits=["train"],
        cell_types=[cell_type],
        ids=ids,
        global_batch=len(ids),
        training=False,
    )
    (batch,) = stream.read()
    size = config.data.image_size
    return torch.cat([batch.images, torch.ones(config.samples_per_type - len(ids), 3, size, size)])
