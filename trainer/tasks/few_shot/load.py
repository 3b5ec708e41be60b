"""The networks of a few-shot run: built for training, and taken up again to make images of its rare types."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, normal, uniform
from models.errors import ModelError
from models.few_shot.networks import Discriminator, Encoder, FeatureDecoder, Generator, Miner
from trainer.learners.fixed_places import make_in_fixed_places
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.runs.configuration import typed
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.tasks.few_shot.config import FewShotModelConfig, FewShotRunConfig

# What a run's config.yaml says it is.
KIND = "few_shot_gan"
# Of all networks, those that make images.
_MAKERS = ("generator", "miner")


def build_networks(model: FewShotModelConfig, image_size: int) -> dict[str, nn.Module]:
    """An algorithm's networks by name. UserError for a size that they cannot take."""
    try:
        discriminator = Discriminator(model.discriminator, image_size)
        in_size = latent_size(model)
        networks: dict[str, nn.Module] = {"discriminator": discriminator}
        networks["generator"] = Generator(model.generator, in_size, image_size)
        if model.algorithm == "few_shot_meta":
            networks["encoder"] = Encoder(model.encoder, image_size)
        if model.algorithm == "fast_gan":
            networks["decoder"] = FeatureDecoder(discriminator.feature_channels, model.generator.width)
        if model.algorithm == "mine_gan":
            networks["miner"] = Miner(in_size)
    except ModelError as error:
        raise UserError(str(error)) from error
    return networks


def latent_size(model: FewShotModelConfig) -> int:
    """Numbers that an image follows from: its noise, and the feature vector of the image it is made after."""
    return model.generator.latent_size + (model.encoder.feature_size if model.algorithm == "few_shot_meta" else 0)


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


def make_images(makers: Mapping[str, nn.Module], numbers: torch.Tensor, indices: npt.NDArray[np.int64]) -> torch.Tensor:
    """Images float32 [n, 3, S, S] in [-1, 1] from latents [n, latent_size], n >= 1, on their device.

    makers: the generator and, where there is one, the miner, in evaluation mode. indices: see make_in_fixed_places.
    """

    def make(latents: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = makers["generator"](makers["miner"](latents) if "miner" in makers else latents)
        return images

    return make_in_fixed_places(make, numbers, indices)


@contextmanager
def evaluating(networks: Mapping[str, nn.Module]) -> Iterator[Mapping[str, nn.Module]]:
    """The networks in evaluation mode; afterwards each is in the mode it was in."""
    modes = {name: network.training for name, network in networks.items()}
    for network in networks.values():
        network.eval()
    yield networks
    for name, network in networks.items():
        network.train(modes[name])


def adapted_folder(run: Path, cell_type: str) -> Path:
    """Where a run keeps what it has learned of a rare type."""
    return run / "adapted" / cell_type.replace(" ", "-")


@dataclasses.dataclass(frozen=True)
class AdaptedType:
    """The weights adapted to one rare type: networks in evaluation mode, and features [k, f] of its images or None."""

    makers: nn.ModuleDict
    features: torch.Tensor | None
    checkpoint: Checkpoint


class FewShotSampler:
    """What a few-shot run has learned, as an `ImageSampler`; on the CPU until moved."""

    def __init__(
        self, adapted: Mapping[str, AdaptedType], config: FewShotRunConfig, domain: str, dataset_hash: str
    ) -> None:
        self.cell_types = tuple(adapted)
        self.image_size = config.data.image_size
        self.latent_size = latent_size(config.model)
        self.domain = domain
        self.device = torch.device("cpu")
        self._adapted = dict(adapted)
        self._config = config
        self._dataset_hash = dataset_hash

    def to(self, device: torch.device) -> "FewShotSampler":
        """The sampler itself, from now on on this device."""
        for adapted in self._adapted.values():
            adapted.makers.to(device)
        self.device = device
        return self

    def draw(self, cell_type: str, seed: int, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """See ImageSampler.draw. UserError for a type that the run did not adapt to."""
        if cell_type not in self._adapted:
            raise UserError(f"no images of {cell_type!r} from this run: it adapted to {', '.join(self.cell_types)}")
        if len(indices) == 0:
            side = self.image_size
            nothing = torch.empty(0, 3, side, side), torch.empty(0, self.latent_size)
            return nothing[0].to(self.device), nothing[1].to(self.device)
        adapted = self._adapted[cell_type]
        key = derive_key(seed, "latent", cell_type)
        numbers = latents(self._config.model, adapted.features, key, indices).to(self.device)
        return make_images(dict(adapted.makers.items()), numbers, indices), numbers

    def describe(self) -> dict[str, Any]:
        """See ImageSampler.describe; `checkpoint` is the SHA-256 of the digests of all types' checkpoints."""
        digests = {name: adapted.checkpoint.digest for name, adapted in self._adapted.items()}
        return {
            "name": self._config.model.algorithm,
            "checkpoint": hashlib.sha256("/".join(digests.values()).encode()).hexdigest()[:16],
            "checkpoints": digests,
            "dataset_hash": self._dataset_hash,
            "config": dataclasses.asdict(self._config),
        }


def load_few_shot_model(run: Path) -> FewShotSampler:
    """What a run adapted to. UserError for a folder that holds no finished adaptation, or another kind of run."""
    content = read_run_config(run)
    if content.pop("kind", None) != KIND:
        raise UserError(f"{run}: not a run of train_few_shot_gan.py: give the folder of one")
    try:
        facts = {name: content.pop(name) for name in ("domain", "dataset_hash")}
    except KeyError as error:
        raise UserError(f"{run / CONFIG_FILE}: damaged ({error} is missing)") from error
    config = typed(FewShotRunConfig, content, str(run / CONFIG_FILE))
    adapted = {name: _load_type(run, config, name) for name in config.rare_types or ()}
    return FewShotSampler(adapted, config, facts["domain"], facts["dataset_hash"])


def _load_type(run: Path, config: FewShotRunConfig, cell_type: str) -> AdaptedType:
    checkpoint = CheckpointStore(adapted_folder(run, cell_type) / "checkpoints").latest()
    state = None if checkpoint is None else checkpoint.load()
    if checkpoint is None or state is None or not state["finished"]:
        raise UserError(f"{run}: the adaptation to {cell_type} is not finished: let train_few_shot_gan.py go on first")
    networks = build_networks(config.model, config.data.image_size)
    makers = nn.ModuleDict({name: networks[name] for name in _MAKERS if name in networks})
    saved = state["episode"]["generators"]
    weights = saved["networks"] if saved["average"] is None else saved["average"]
    made = {key: value for key, value in weights.items() if key.split(".")[0] in _MAKERS}
    checkpoint.fill(makers, made, run / CONFIG_FILE)
    makers.eval()
    return AdaptedType(makers, state["features"], checkpoint)
