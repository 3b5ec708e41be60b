"""Sample sheets of a stain run: real, normalised and reconstructed cells of each type (figures 41-46)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from data_pipeline.catalog import Dataset
from trainer.reports.sheets import draw_sheet
from trainer.runs.registry import algorithm_class
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.images import read_images


class StainSheets:
    """Draws the same cells every time: the first few of each type, validation images before training ones."""

    def __init__(self, dataset: Dataset, config: StainRunConfig, cell_types: Sequence[str], run: Path) -> None:
        self._config = config
        self._folder = run / "samples"
        self._cells = {
            domain: _choose(dataset, config, domain, [name for name in cell_types if name])
            for domain in (str(config.a), str(config.b))
        }

    @torch.no_grad()
    def draw(self, generators: nn.Module, device: torch.device, step: int) -> None:
        """Write `step-<n>-<from>-to-<to>.png` for both directions; generators: module of the learner `generators`."""
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
    chosen: dict[str, str] = {}  # id -> type
    for name in cell_types:
        ids: list[str] = []
        for split in ("validation", "train"):
            ids += dataset.samples(splits=[split], domains=[domain], cell_types=[name], columns=["id"])["id"].tolist()
        chosen |= dict.fromkeys(ids[: config.samples_per_type], name)
    if not chosen:
        return torch.empty(0), []
    data = dataclasses.replace(config.data, domains=[domain], cell_types=None)
    images: dict[str, torch.Tensor] = {}
    for ids, batch in read_images(dataset, list(chosen), data, 32, torch.device("cpu")):
        images |= {name: image.clone() for name, image in zip(ids, batch, strict=True)}
    return torch.stack([images[name] for name in chosen]), list(chosen.values())
