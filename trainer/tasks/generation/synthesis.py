"""Drawing images of a cell type from a trained generator, and filling a bank with them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from data_pipeline.banks.bank_writer import fill_bank
from data_pipeline.banks.image_bank import BankFacts, ImageBank
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE, LearnedImages
from data_pipeline.stream.stream import Topology
from trainer.runs import registry
from trainer.runs.run_directory import read_run_config
from trainer.tasks.generation.synthesis_config import SynthesizeConfig


class ImageSampler(Protocol):
    """A trained generator of cells, one image for each (seed, cell type, index)."""

    cell_types: tuple[str, ...]  # that it makes
    image_size: int  # side of its square images, pixels
    latent_size: int  # length of the latent vector of one image
    domain: str  # stain of its images: that of most of its training images
    # To be set before `draw`. truncation: factor of the noise; below 1 images are more alike and more typical.
    truncation: float
    # Not None: image `index` of a type is a variation of the type's training image `parents[type][index % k]`.
    strength: float | None
    parents: Mapping[str, tuple[str, ...]]  # ids of the k training images of each type; empty without an encoder

    def to(self, device: torch.device) -> "ImageSampler":
        """Move to a device; returns the sampler itself."""
        ...

    def draw(self, cell_type: str, seed: int, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images float32 [n, 3, S, S] in [-1, 1] and their latents float32 [n, latent_size], on the sampler's device.

        An image is a function of (seed, cell_type, index) and the weights only, not of the other images in the call.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What made the images, as plain JSON values: name, checkpoint (SHA-256), dataset_hash, config."""
        ...


def load_sampler(run: Path) -> ImageSampler:
    """A run's trained generator, on the CPU. UserError for a folder that is no run of a generator of cells."""
    task = registry.task(str(read_run_config(run).get("kind")), str(run))
    if not task.makes_images:
        raise UserError(
            f"{run}: not a run that makes cells: give one of train_conditional_gan.py or train_few_shot_gan.py"
        )
    return task.load(run)


def synthesize(
    sampler: ImageSampler, config: SynthesizeConfig, topology: Topology, learned: LearnedImages
) -> ImageBank:
    """Fill the bank of `config.bank` with `config.count` images of each type; returns the finished bank.

    learned: the sampler's training images, saved with the bank. Data-parallel; an interrupted bank is resumed.
    UserError for a type that the sampler does not make, and for a bank with other content.
    """
    unknown = [name for name in config.cell_types if name not in sampler.cell_types]
    if unknown:
        raise UserError(
            f"cell_types: {config.run} makes no {unknown[0]!r}: use some of {', '.join(sampler.cell_types)}"
        )
    wanted = config.cell_types or sampler.cell_types
    drawn_with = _set_latents(sampler, config, wanted)
    facts = BankFacts(
        made_by=sampler.describe() | {"seed": config.seed} | drawn_with,
        domain=sampler.domain,
        cell_types=tuple(name for name in CELL_TYPES if name in wanted),
        image_size=sampler.image_size,
        latent_size=sampler.latent_size,
    )
    if len(set(gather_object([facts.identity]))) > 1:
        raise UserError(f"{config.run}: a checkpoint was written while it was read: wait until its training has ended")
    sampler = sampler.to(topology.device)

    @torch.no_grad()
    def draw(cell_type: str, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        images, latents = sampler.draw(cell_type, config.seed, indices)
        levels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).cpu().numpy(), latents.float().cpu().numpy()

    bank = fill_bank(
        Path(str(config.bank)),
        facts,
        int(config.count or 0),
        draw,
        rank=topology.rank,
        world_size=topology.world_size,
        barrier=PartialState().wait_for_everyone,
    )
    if topology.rank == 0 and not (bank.root / FILE).exists():
        learned.save(bank.root)
    return bank


def _set_latents(sampler: ImageSampler, config: SynthesizeConfig, cell_types: Sequence[str]) -> dict[str, Any]:
    """Tell the sampler where its latents lie; returns it for the bank's facts, empty for plain draws.

    UserError for variations without an encoder.
    """
    if not config.variations:
        sampler.truncation = config.truncation
        return {} if config.truncation == 1 else {"truncation": config.truncation}
    if missing := [name for name in cell_types if name not in sampler.parents]:
        raise UserError(
            f"variations=true: {config.run} encodes no training image of {missing[0]}: give a run of "
            "train_few_shot_gan.py model=few_shot_meta, trained by this version"
        )
    sampler.strength = config.strength
    return {"strength": config.strength, "parents": {name: list(sampler.parents[name]) for name in cell_types}}
