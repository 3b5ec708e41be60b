"""The networks of a run that makes cells: built for training, and taken up again to make images."""

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
from models.conditional.networks import OfEachType, build_classifier, build_critic, build_generator
from models.errors import ModelError
from trainer.learners.fixed_places import make_in_fixed_places
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.runs.configuration import typed
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.tasks.conditional.algorithm import ConditionalAlgorithm
from trainer.tasks.conditional.algorithms.ac_gan import AuxiliaryClassifierGan
from trainer.tasks.conditional.algorithms.c_wgan_gp import ClassifierWganGp
from trainer.tasks.conditional.algorithms.cgan import ConditionalGan
from trainer.tasks.conditional.algorithms.cwgan_gp import ConditionalWganGp
from trainer.tasks.conditional.algorithms.dcgan import DeepConvolutionalGan
from trainer.tasks.conditional.algorithms.info_gan import InfoGan, codes_of_types
from trainer.tasks.conditional.config import ConditionalModelConfig, ConditionalRunConfig

ALGORITHMS: dict[str, type[ConditionalAlgorithm]] = {
    "c_wgan_gp": ClassifierWganGp,
    "ac_gan": AuxiliaryClassifierGan,
    "cwgan_gp": ConditionalWganGp,
    "info_gan": InfoGan,
    "dcgan": DeepConvolutionalGan,
    "cgan": ConditionalGan,
}
# What a run's config.yaml says it is.
KIND = "conditional_gan"


def build_networks(model: ConditionalModelConfig, image_size: int, types: int) -> dict[str, nn.Module]:
    """The networks of an algorithm by learner, for so many types. UserError for a size that they cannot take."""
    algorithm = ALGORITHMS[model.algorithm]
    shown = types if algorithm.critic_sees_types else 0
    named = types if algorithm.critic_names_types else 0
    networks: dict[str, nn.Module] = {"generator": _build_generator(model, image_size, types)}
    if algorithm.pair_for_each_type:
        networks["critic"] = OfEachType([build_critic(model.critic, image_size) for _ in range(types)])
    else:
        networks["critic"] = build_critic(model.critic, image_size, class_outputs=named, shown_classes=shown)
    if algorithm.has_classifier:
        networks["classifier"] = build_classifier(model.classifier, image_size, types)
    return networks


def _build_generator(model: ConditionalModelConfig, image_size: int, types: int) -> nn.Module:
    try:
        if ALGORITHMS[model.algorithm].pair_for_each_type:
            return OfEachType([build_generator(model.generator, image_size, 0) for _ in range(types)])
        return build_generator(model.generator, image_size, types)
    except ModelError as error:
        raise UserError(f"data.image_size={image_size}: {error}") from error


def latents(seed: int, cell_type: str, indices: npt.NDArray[np.int64], size: int) -> torch.Tensor:
    """Standard normal float32 [n, size], each row of (seed, cell type, index) alone."""
    return torch.from_numpy(normal(derive_key(seed, "latent", cell_type), indices, size)).float()


def make_images(
    generator: nn.Module, condition: int, numbers: torch.Tensor, indices: npt.NDArray[np.int64]
) -> torch.Tensor:
    """Images float32 [n, 3, S, S] in [-1, 1] from latents [n, latent_size], on their device.

    generator: in evaluation mode; condition: what it is told of all of them. indices: see make_in_fixed_places.
    """

    def make(latents: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = generator(latents, torch.full((len(latents),), condition, device=latents.device))
        return images

    return make_in_fixed_places(make, numbers, indices)


class ConditionalSampler:
    """What a run has learned, as an `ImageSampler` (trainer/tasks/generation/synthesis.py); on the CPU until moved."""

    def __init__(
        self,
        generator: nn.Module,
        conditions: Sequence[int],
        config: ConditionalRunConfig,
        cell_types: Sequence[str],
        domain: str,
        dataset_hash: str,
        checkpoint: Checkpoint,
    ) -> None:
        """conditions: what the generator is told for each type, in the order of cell_types."""
        self.cell_types = tuple(cell_types)
        self.image_size = config.data.image_size
        self.latent_size = config.model.generator.latent_size
        self.domain = domain
        self.device = torch.device("cpu")
        self._generator = generator.eval()
        self._conditions = dict(zip(cell_types, conditions, strict=True))
        self._config = config
        self._dataset_hash = dataset_hash
        self._checkpoint = checkpoint

    def to(self, device: torch.device) -> "ConditionalSampler":
        """The sampler itself, from now on on this device."""
        self._generator.to(device)
        self.device = device
        return self

    def draw(self, cell_type: str, seed: int, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """See ImageSampler.draw. UserError for a type that the run did not learn."""
        if cell_type not in self._conditions:
            raise UserError(f"no images of {cell_type!r} from this run: it learned {', '.join(self.cell_types)}")
        if len(indices) == 0:
            side = self.image_size
            return torch.empty(0, 3, side, side, device=self.device), torch.empty(
                0, self.latent_size, device=self.device
            )
        numbers = latents(seed, cell_type, indices, self.latent_size).to(self.device)
        return make_images(self._generator, self._conditions[cell_type], numbers, indices), numbers

    def describe(self) -> dict[str, Any]:
        """See ImageSampler.describe; `checkpoint` is the first 16 hex digits of its SHA-256."""
        return {
            "name": self._config.model.algorithm,
            "checkpoint": self._checkpoint.digest,
            "step": self._checkpoint.step,
            "dataset_hash": self._dataset_hash,
            "config": dataclasses.asdict(self._config),
        }


def load_conditional_model(run: Path) -> ConditionalSampler:
    """The newest checkpoint's averaged generator. UserError for a folder that holds none, or another kind of run."""
    content = read_run_config(run)
    if content.pop("kind", None) != KIND:
        raise UserError(f"{run}: not a run of train_conditional_gan.py: give the folder of one")
    try:
        facts = {name: content.pop(name) for name in ("cell_types", "domain", "dataset_hash")}
    except KeyError as error:
        raise UserError(f"{run / CONFIG_FILE}: damaged ({error} is missing)") from error
    config = typed(ConditionalRunConfig, content, str(run / CONFIG_FILE))
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    if checkpoint is None:
        raise UserError(f"{run}: no checkpoint yet: let train_conditional_gan.py go on first")
    saved = checkpoint.load()
    state, types = saved["learners"]["generator"], facts["cell_types"]
    generator = _build_generator(config.model, config.data.image_size, len(types))
    checkpoint.fill(generator, state["average"] or state["module"], run / CONFIG_FILE)
    conditions = list(range(len(types)))
    if config.model.algorithm == "info_gan":
        conditions = codes_of_types(saved["algorithm"]["answers"].tolist())
    return ConditionalSampler(generator, conditions, config, types, facts["domain"], facts["dataset_hash"], checkpoint)
