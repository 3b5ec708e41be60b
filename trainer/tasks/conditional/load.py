"""What a run that makes cells of wanted types has learned: a sampler of images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, normal
from trainer.learners.fixed_places import make_in_fixed_places
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.runs.record import RunRecord
from trainer.runs.registry import algorithm_class
from trainer.runs.run_directory import CONFIG_FILE
from trainer.tasks.conditional.config import ConditionalRunConfig


def latents(seed: int, cell_type: str, indices: npt.NDArray[np.int64], size: int) -> torch.Tensor:
    """Standard normal float32 [n, size], each row of (seed, cell type, index) alone."""
    return torch.from_numpy(normal(derive_key(seed, "latent", cell_type), indices, size)).float()


def make_images(
    generator: nn.Module, condition: int, numbers: torch.Tensor, indices: npt.NDArray[np.int64]
) -> torch.Tensor:
    """Images float32 [n, 3, S, S] in [-1, 1] from latents [n, latent_size], on their device.

    generator: in evaluation mode. condition: what it is given for all of them, such as the type. indices: see
    make_in_fixed_places.
    """

    def make(latents: torch.Tensor) -> torch.Tensor:
        return generator(latents, torch.full((len(latents),), condition, device=latents.device))

    return make_in_fixed_places(make, numbers, indices)


class ConditionalSampler:
    """What a run has learned, as an `ImageSampler` (trainer/tasks/generation/synthesis.py); on the CPU until moved."""

    def __init__(
        self,
        generator: nn.Module,
        conditions: Sequence[int],
        record: "RunRecord[ConditionalRunConfig]",
        checkpoint: Checkpoint,
    ) -> None:
        """conditions: what the generator is given for each of the record's cell types."""
        self.cell_types, self.domain = record.cell_types, record.domain
        self.image_size = record.config.data.image_size
        self.latent_size = record.config.model.generator.latent_size
        self.device = torch.device("cpu")
        self.truncation: float = 1.0
        self.strength: float | None = None
        self.parents: dict[str, tuple[str, ...]] = {}
        self._generator = generator.eval()
        self._conditions = dict(zip(record.cell_types, conditions, strict=True))
        self._record = record
        self._checkpoint = checkpoint

    def to(self, device: torch.device) -> "ConditionalSampler":
        """The sampler itself, from now on on this device."""
        self._generator.to(device)
        self.device = device
        return self

    def draw(self, cell_type: str, seed: int, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """See ImageSampler.draw. UserError for a type that the run did not learn."""
        if cell_type not in self._conditions:
            raise UserError(f"no images of {cell_type!r} from this run: choose from {', '.join(self.cell_types)}")
        if len(indices) == 0:
            side = self.image_size
            return torch.empty(0, 3, side, side, device=self.device), torch.empty(
                0, self.latent_size, device=self.device
            )
        numbers = self.truncation * latents(seed, cell_type, indices, self.latent_size).to(self.device)
        return make_images(self._generator, self._conditions[cell_type], numbers, indices), numbers

    def describe(self) -> dict[str, Any]:
        """See ImageSampler.describe; `checkpoint` is the first 16 hex digits of its SHA-256."""
        return {
            "name": self._record.config.model.algorithm,
            "checkpoint": self._checkpoint.digest,
            "step": self._checkpoint.step,
            "dataset_hash": self._record.dataset_hash,
            "config": dataclasses.asdict(self._record.config),
        }


def load_conditional_model(run: Path) -> ConditionalSampler:
    """The averaged generator of the best checkpoint, else of the newest. UserError for a folder without one."""
    record = RunRecord.read(run, "conditional")
    store = CheckpointStore(run / "checkpoints")
    checkpoint = store.best() or store.latest()
    if checkpoint is None:
        raise UserError(f"{run}: no checkpoint yet: let train_conditional_gan.py go on first")
    saved, model, types = checkpoint.load(), record.config.model, len(record.cell_types)
    algorithm, state = algorithm_class("conditional", model.algorithm), saved["learners"]["generator"]
    generator = algorithm.build_generator(model, record.config.data.image_size, types)
    checkpoint.fill(generator, state["average"] or state["module"], run / CONFIG_FILE)
    return ConditionalSampler(generator, algorithm.conditions_of(saved["algorithm"], types), record, checkpoint)
