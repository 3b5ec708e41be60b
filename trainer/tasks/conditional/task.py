"""Generators of wanted cell types: C-WGAN-GP and its rivals."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages, learned_by_makers
from data_pipeline.stream.stream import Stream, Topology
from trainer.learners.learner import Setting
from trainer.loop.algorithm import Algorithm
from trainer.loop.selection import Selection
from trainer.runs.feature_spaces import learned_by_features
from trainer.runs.registry import algorithm_class
from trainer.runs.task import Session, Task
from trainer.runs.validation_distance import FEWEST, ValidationDistance, by_distance, validation_images
from trainer.tasks.conditional.config import MODERATE_TYPES, ConditionalRunConfig
from trainer.tasks.conditional.load import latents, load_conditional_model, make_images
from trainer.tasks.conditional.sheets import ConditionalSheets


class ConditionalSession(Session[ConditionalRunConfig]):
    """A training of a generator."""

    def __init__(self, config: ConditionalRunConfig, dataset: Dataset, topology: Topology) -> None:
        self.config, self.dataset, self.topology = config, dataset, topology
        self.cell_types = chosen_cell_types(dataset, config)
        stream = training_stream(dataset, config, self.cell_types, topology)
        self.streams = {"train": stream}
        batches = max(1, stream.batches_per_epoch // config.model.critic_steps)
        self.epoch_steps = config.train.iterations_per_epoch or batches
        self.domain = str(stream.samples["domain"].mode()[0])
        self._sheets: ConditionalSheets | None = None

    def build(self, setting: Setting, *, fresh: bool) -> Algorithm:
        self._algorithm = algorithm_class("conditional", self.config.model.algorithm)(
            self.config, len(self.cell_types), setting
        )
        self._distance = ValidationDistance(
            self.dataset, self.config.data, self.cell_types, self.config.features, self.topology
        )
        if self.topology.rank == 0:
            self._sheets = ConditionalSheets(self.dataset, self.config, self.cell_types, Path(str(self.config.run)))
        return self._algorithm

    def score_epoch(self, step: int) -> dict[str, float]:
        generator, size = self._algorithm.learners["generator"], self.config.model.generator.latent_size
        conditions = dict(zip(self.cell_types, self._algorithm.conditions, strict=True))
        network = generator.average.eval()
        if self._sheets is not None:
            self._sheets.draw(network, list(conditions.values()), generator.device, step)

        def make(cell_type: str, count: int) -> torch.Tensor:
            indices = np.arange(count)
            numbers = latents(self.config.seed, cell_type, indices, size).to(generator.device)
            return make_images(network, conditions[cell_type], numbers, indices)

        return self._distance.scores(make)


class Conditional(Task[ConditionalRunConfig]):
    """A generator of cells of given types."""

    kind = "conditional"
    launcher = "train_conditional_gan.py"
    config = ConditionalRunConfig
    session = ConditionalSession
    load = staticmethod(load_conditional_model)
    makes_images = True

    def build(self, config: ConditionalRunConfig, types: int, setting: Setting) -> Algorithm:
        return algorithm_class(self.kind, config.model.algorithm)(config, types, setting)

    def planned_types(self, config: ConditionalRunConfig) -> int:
        return len(config.data.cell_types or MODERATE_TYPES)

    def selection(self, config: ConditionalRunConfig, dataset: Dataset) -> Selection | None:
        images = validation_images(dataset, config.data, chosen_cell_types(dataset, config))
        return by_distance(images, config.train.patience)

    def learned(self, config: ConditionalRunConfig, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
        """Training images of the types that it makes, and validation images, by which its best checkpoint is chosen."""
        rows = dataset.samples(
            splits=["train"], domains=config.data.domains, cell_types=cell_types, columns=["id", "origin"]
        )
        chosen = [each for ids in validation_images(dataset, config.data, cell_types).values() for each in ids]
        trained = rows["id"][rows["origin"] != "synthetic"].tolist()
        own = LearnedImages.of(dataset, {"trained": trained, "chosen": chosen if len(chosen) >= FEWEST else []})
        return LearnedImages.joined([own, learned_by_features(config.features), learned_by_makers(dataset)])


TASK = Conditional()


def chosen_cell_types(dataset: Dataset, config: ConditionalRunConfig) -> tuple[str, ...]:
    """The types to make, in the order of CELL_TYPES. UserError for one without training images."""
    rows = dataset.samples(
        splits=["train"],
        domains=config.data.domains,
        cell_types=config.data.cell_types or MODERATE_TYPES,
        columns=["cell_type", "origin"],
    )
    present = set(rows["cell_type"][rows["origin"] != "synthetic"])
    missing = [name for name in config.data.cell_types or [] if name not in present]
    if missing:
        raise UserError(
            f"{dataset.root}: no training image of {', '.join(missing)} in domains {config.data.domains or 'all'}: "
            "leave it out of data.cell_types, or add images"
        )
    if len(present) < 2:
        raise UserError(
            f"{dataset.root}: training images of {', '.join(present) or 'none'} of the chosen cell types: "
            "a conditional generator needs two types at least; name them in data.cell_types"
        )
    return tuple(name for name in CELL_TYPES if name in present)


def training_stream(
    dataset: Dataset, config: ConditionalRunConfig, cell_types: Sequence[str], topology: Topology
) -> Stream:
    """Training images that no generator made, all types equally often."""
    rows = dataset.samples(splits=["train"], domains=config.data.domains, columns=["id", "origin"])
    return Stream(
        dataset,
        dataclasses.replace(config.data, cell_types=None, sampling="class_balanced"),
        splits=["train"],
        cell_types=cell_types,
        ids=rows["id"][rows["origin"] != "synthetic"].tolist(),
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        seed=config.seed,
        training=True,
        topology=topology,
    )
