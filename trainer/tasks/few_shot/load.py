"""What a few-shot run has learned: a sampler of images of its rare types."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, normal, uniform
from trainer.learners.fixed_places import make_in_fixed_places
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.runs.record import RunRecord
from trainer.runs.run_directory import CONFIG_FILE
from trainer.tasks.few_shot.config import FewShotModelConfig, FewShotRunConfig
from trainer.tasks.few_shot.episode import episode_class


def latents(
    model: FewShotModelConfig, features: torch.Tensor | None, key: int, indices: npt.NDArray[np.int64]
) -> torch.Tensor:
    """Latents float32 [n, latent_size], on the CPU, each row a function of (key, index).

    features: float32 [k, feature_size] of a type's k training images, on the CPU, of which each row takes one; None
    without encoder.
    """
    noise = torch.from_numpy(normal(derive_key(key, "noise"), indices, model.generator.latent_size)).float()
    if features is None:
        return noise
    draws = uniform(derive_key(key, "training image"), indices, 1)[:, 0]
    return torch.cat([noise, features[torch.from_numpy((draws * len(features)).astype(np.int64))]], dim=1)


def variations(
    model: FewShotModelConfig, features: torch.Tensor, key: int, indices: npt.NDArray[np.int64], strength: float
) -> torch.Tensor:
    """Latents float32 [n, latent_size] near encoded training images: row `index` near image `index % k`.

    strength: how far it lies from its image, as a share of what the type's images (features) and the noise vary by;
    0 reconstructs the image.
    """
    noise, moved = (
        torch.from_numpy(normal(derive_key(key, name), indices, size)).float()
        for name, size in (("noise", model.generator.latent_size), ("variation", features.shape[1]))
    )
    near = features[torch.from_numpy(indices % len(features))] + strength * features.std(dim=0, correction=0) * moved
    return torch.cat([strength * noise, near], dim=1)


def make_images(
    model: FewShotModelConfig, makers: Mapping[str, nn.Module], numbers: torch.Tensor, indices: npt.NDArray[np.int64]
) -> torch.Tensor:
    """Images float32 [n, 3, S, S] in [-1, 1] from latents [n, latent_size], n >= 1, on their device.

    makers: the algorithm's, in evaluation mode. indices: see make_in_fixed_places.
    """
    return make_in_fixed_places(partial(episode_class(model).make, makers), numbers, indices)


@contextmanager
def evaluating(networks: Mapping[str, nn.Module]) -> Iterator[Mapping[str, nn.Module]]:
    """The networks in evaluation mode; afterwards each is in the mode it was in."""
    modes = {name: network.training for name, network in networks.items()}
    for network in networks.values():
        network.eval()
    yield networks
    for name, network in networks.items():
        network.train(modes[name])


def adapted_folder(run: Path, cell_type: str, number: int = 0) -> Path:
    """Where a run keeps what it has learned of a rare type. number: which of the adaptations to it."""
    return run / "adapted" / f"{cell_type.replace(' ', '-')}{f'-seed{number}' if number else ''}"


@dataclasses.dataclass(frozen=True)
class AdaptedType:
    """The weights of one adaptation to a rare type."""

    makers: nn.ModuleDict  # in evaluation mode
    features: torch.Tensor | None  # float32 [k, feature_size] of the type's training images; None without an encoder
    ids: tuple[str, ...]  # of these images; empty in a checkpoint of an older version
    checkpoint: Checkpoint


class FewShotSampler:
    """What a few-shot run has learned, as an `ImageSampler`; on the CPU until moved."""

    def __init__(self, adapted: Mapping[str, tuple[AdaptedType, ...]], record: "RunRecord[FewShotRunConfig]") -> None:
        """adapted: rare type -> the adaptations to it."""
        self.cell_types, self.domain = tuple(adapted), record.domain
        self.image_size = record.config.data.image_size
        self.latent_size = episode_class(record.config.model).latent_size(record.config.model)
        self.device = torch.device("cpu")
        self._adapted, self._record = dict(adapted), record
        self.truncation: float = 1.0
        self.strength: float | None = None
        # Ids of the training images that variations are made of; a type without an encoder has none.
        self.parents = {
            name: first.ids for name, (first, *_) in adapted.items() if first.features is not None and first.ids
        }

    def to(self, device: torch.device) -> "FewShotSampler":
        """Moves the sampler; returns it."""
        for adapted in itertools.chain(*self._adapted.values()):
            adapted.makers.to(device)
        self.device = device
        return self

    def draw(self, cell_type: str, seed: int, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """See ImageSampler.draw; adaptations take turns by index. UserError for a type the run did not adapt to."""
        if cell_type not in self._adapted:
            raise UserError(f"no images of {cell_type!r} from this run: choose from {', '.join(self.cell_types)}")
        side, model, several = self.image_size, self._record.config.model, self._adapted[cell_type]
        images = torch.empty(len(indices), 3, side, side, device=self.device)
        numbers = torch.empty(len(indices), self.latent_size, device=self.device)
        key = derive_key(seed, "latent", cell_type)
        for turn, adapted in enumerate(several):
            own = np.flatnonzero(indices % len(several) == turn)
            if len(own):
                some = self._latents(adapted, key, indices[own]).to(self.device)
                numbers[own] = some
                images[own] = make_images(model, dict(adapted.makers.items()), some, indices[own])
        return images, numbers

    def _latents(self, adapted: AdaptedType, key: int, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Float32 [n, latent_size], on the CPU."""
        model = self._record.config.model
        if self.strength is not None and adapted.features is not None:
            return variations(model, adapted.features, key, indices, self.strength)
        numbers = latents(model, adapted.features, key, indices)
        numbers[:, : model.generator.latent_size] *= self.truncation
        return numbers

    def describe(self) -> dict[str, Any]:
        """See ImageSampler.describe; `checkpoint` is the SHA-256 of the digests of all types' checkpoints."""
        digests = {
            name: "/".join(each.checkpoint.digest for each in several) for name, several in self._adapted.items()
        }
        return {
            "name": self._record.config.model.algorithm,
            "checkpoint": hashlib.sha256("/".join(digests.values()).encode()).hexdigest()[:16],
            "checkpoints": digests,
            "dataset_hash": self._record.dataset_hash,
            "config": dataclasses.asdict(self._record.config),
        }


def load_few_shot_model(run: Path) -> FewShotSampler:
    """What a run adapted to. UserError for a folder without a finished adaptation, or another kind of run."""
    record = RunRecord.read(run, "few_shot")
    seeds = range(record.config.adaptation.seeds)
    adapted = {
        name: tuple(_load_adapted(run, record.config, name, number) for number in seeds)
        for name in record.config.rare_types or ()
    }
    return FewShotSampler(adapted, record)


def _load_adapted(run: Path, config: FewShotRunConfig, cell_type: str, number: int) -> AdaptedType:
    store = CheckpointStore(adapted_folder(run, cell_type, number) / "checkpoints")
    checkpoint = store.latest()
    state = None if checkpoint is None else checkpoint.load()
    if checkpoint is None or state is None or state["algorithm"]["round"] < state["algorithm"]["rounds"]:
        raise UserError(
            f"{run}: the adaptation to {cell_type} is not finished: give its train_few_shot_gan.py command again first"
        )
    if best := store.best():
        checkpoint, state = best, best.load()
    algorithm = episode_class(config.model)
    networks = algorithm.build_networks(config.model, config.data.image_size)
    makers = nn.ModuleDict({name: networks[name] for name in algorithm.makers})
    saved = state["learners"]["generators"]
    weights = saved["average"] or saved["module"]
    checkpoint.fill(
        makers, {key: value for key, value in weights.items() if key.split(".")[0] in makers}, run / CONFIG_FILE
    )
    learned = state["algorithm"]
    return AdaptedType(makers.eval(), learned["features"], tuple(learned.get("ids", ())), checkpoint)
