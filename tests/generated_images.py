"""Generators of cells that need no training: every image is plain noise of (seed, cell type, index)."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.banks.bank_writer import fill_bank
from data_pipeline.banks.image_bank import BankFacts, ImageBank
from data_pipeline.randomness import derive_key, normal

SIDE, LATENT = 16, 4


def image(seed: int, cell_type: str, index: int) -> npt.NDArray[np.uint8]:
    """uint8 [SIDE, SIDE, 3]."""
    numbers = normal(derive_key(seed, cell_type), [index], SIDE * SIDE * 3).reshape(SIDE, SIDE, 3)
    return np.clip(128 + 40 * numbers, 0, 255).astype(np.uint8)


def latent(seed: int, cell_type: str, index: int) -> npt.NDArray[np.float32]:
    """float32 [LATENT]."""
    return normal(derive_key(seed, cell_type, "latent"), [index], LATENT)[0].astype(np.float32)


class Draw:
    """Draws for `fill_bank`, and notes what it was asked for, in a file where one is given."""

    def __init__(self, seed: int = 0, log: Path | None = None) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self._seed, self._log = seed, log

    def __call__(
        self, cell_type: str, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        self.calls.append((cell_type, indices.tolist()))
        if self._log is not None:
            with self._log.open("a") as log:
                log.writelines(f"{cell_type}/{index}\n" for index in indices)
        images = [image(self._seed, cell_type, index) for index in indices.tolist()]
        return np.stack(images), np.stack([latent(self._seed, cell_type, index) for index in indices.tolist()])


def bank_facts(
    cell_types: tuple[str, ...], domain: str = "giemsa", seed: int = 0, dataset_hash: str = "0" * 64
) -> BankFacts:
    made_by = {"name": "noise", "checkpoint": "c" * 16, "dataset_hash": dataset_hash, "seed": seed}
    return BankFacts({**made_by, "config": {"run": "somewhere"}}, domain, cell_types, SIDE, LATENT)


def make_bank(root: Path, count: int, facts: BankFacts, draw: Draw | None = None, **options: Any) -> ImageBank:
    draw = draw or Draw(facts.made_by["seed"])
    return fill_bank(root, facts, count, draw, **{"progress": False, **options})


class NoiseSampler:
    """An ImageSampler over the same images. It leaves a line in the file of $DRAWN for each draw."""

    def __init__(self, cell_types: tuple[str, ...], dataset_hash: str = "0" * 64) -> None:
        self.cell_types = cell_types
        self.image_size, self.latent_size, self.domain = SIDE, LATENT, "giemsa"
        self._dataset_hash = dataset_hash
        self.truncation: float = 1.0
        self.strength: float | None = None
        self.parents: dict[str, tuple[str, ...]] = {}

    def to(self, device: torch.device) -> "NoiseSampler":
        return self

    def draw(self, cell_type: str, seed: int, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        if "DRAWN" in os.environ:
            with Path(os.environ["DRAWN"]).open("a") as log:
                log.write(f"{len(indices)}\n")
        images, latents = Draw(seed)(cell_type, indices)
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(latents)

    def describe(self) -> dict[str, Any]:
        return {"name": "noise", "checkpoint": "c" * 16, "dataset_hash": self._dataset_hash, "config": {}}
