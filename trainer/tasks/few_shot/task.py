"""Generators of rare types: trained on rich types, then adapted to each rare one from a few images."""

import dataclasses
from pathlib import Path

import numpy.typing as npt
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages, learned_by_makers
from data_pipeline.randomness import derive_key
from data_pipeline.stream.sampling import Order
from data_pipeline.stream.stream import Stream, Topology
from trainer.learners.learner import Setting
from trainer.learners.topology import leave_processes
from trainer.loop.algorithm import Algorithm
from trainer.loop.selection import Selection
from trainer.runs.config import fingerprint
from trainer.runs.feature_spaces import learned_by_features
from trainer.runs.task import Session, Task
from trainer.runs.validation_distance import FEWEST, validation_images
from trainer.tasks.few_shot.adaptation import Adaptation, EpisodeOfRounds
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.data import EpisodeOrder, FewShotData, data_of_run
from trainer.tasks.few_shot.episode import Episode, episode_class
from trainer.tasks.few_shot.load import load_few_shot_model
from trainer.tasks.few_shot.sheets import FewShotSheets


class FewShotSession(Session[FewShotRunConfig]):
    """A training on rich types, then the adaptations to each rare one.

    Ranks part before the adaptations, which are spread over them: each finishes when its own are done.
    """

    def __init__(self, config: FewShotRunConfig, dataset: Dataset, topology: Topology) -> None:
        self.dataset, self.topology = dataset, topology
        self._algorithm = episode_class(config.model)
        self._learns_from_rich = self._algorithm.learns_from_rich(config.model)
        self._data = data = data_of_run(config, dataset, learns_from_rich=self._learns_from_rich)
        if self._learns_from_rich and not data.rich:
            raise UserError(
                f"{dataset.root}: no cell type beside the rare ones ({', '.join(data.rare)}) has training images to "
                "learn from before: add some, or name fewer rare_types=[...]"
            )
        # Episodes and batches of rich types take from everywhere, and a rare type has few images.
        stream_config = dataclasses.replace(config.data, order=config.data.order or "global")
        self.config = config = dataclasses.replace(
            config, data=stream_config, rich_types=list(data.rich), rare_types=list(data.rare)
        )
        self.cell_types, self.domain = data.rare, data.rare_domain
        self.streams, self.epoch_steps = {}, 0
        if self._learns_from_rich:
            stream = rich_stream(config, dataset, data, topology)
            self.streams = {"train": stream}
            self.epoch_steps = config.train.iterations_per_epoch or stream.batches_per_epoch
        torch.manual_seed(derive_key(config.seed, "weights"))
        self._networks = self._algorithm.build_networks(config.model, config.data.image_size)
        for network in self._networks.values():
            network.to(topology.device)
        self._sheets = FewShotSheets(config, Path(str(config.run)))
        self._rich: Algorithm | None = None
        self._adaptations: dict[tuple[str, int], Adaptation] = {}
        # All types with the first seed first: whoever looks sees every type early.
        self._parts = [(name, number) for number in range(config.adaptation.seeds) for name in data.rare]
        for part in self._parts:  # settings that changed are better known before the training
            self._adaptation(*part).saved(self._adapted_with)

    @property
    def facts(self) -> dict[str, str]:
        """Without cell types: what is learned of a rare type does not depend on the others."""
        return {name: value for name, value in super().facts.items() if name != "cell types"}

    @property
    def _adapted_with(self) -> dict[str, str]:
        return fingerprint(self.config, self.facts, "adaptation")

    def _adaptation(self, cell_type: str, number: int = 0) -> Adaptation:
        if (cell_type, number) not in self._adaptations:
            self._adaptations[cell_type, number] = Adaptation(
                cell_type, number, self.config, self.dataset, self._data, self.topology.device
            )
        return self._adaptations[cell_type, number]

    def build(self, setting: Setting, *, fresh: bool) -> Algorithm | None:
        if self._learns_from_rich:
            self._rich = self._algorithm.training_on_rich(self.config, self._networks, setting)
            if fresh and self.topology.rank == 0:
                for name in self._data.rare:
                    self._preview(name, 0)
        return self._rich

    def _preview(self, cell_type: str, step: int) -> Episode:
        """An episode on a rare type with the networks as they are after so many steps, and its sample sheet."""
        adaptation = self._adaptation(cell_type)
        episode = adaptation.preview(self._learned(), self.precision)
        self._sheets.draw(cell_type, adaptation.images, episode.averages, f"step-{step:09d}")
        return episode

    def score_epoch(self, step: int) -> dict[str, float]:
        found: list[float] = []
        if self.topology.rank == 0:
            for name in self._data.rare:
                found += self._adaptation(name).distance(self._preview(name, step))
        scores = {"kernel_distance": sum(found) / len(found)} if found else {}
        if self.topology.world_size > 1:
            (scores,) = broadcast_object_list([scores])
        return scores

    def finish(self) -> None:
        leave_processes()
        for part in self._parts[self.topology.rank :: self.topology.world_size]:
            self._adaptation(*part).run(self._learned(), self.precision, self._adapted_with, self._sheets)
        TASK.write_report(Path(str(self.config.run)))  # by every rank: the last one shows all

    def _learned(self) -> dict[str, nn.Module]:
        """All networks, with the averaged weights of those that have learned and keep an average."""
        learners = {} if self._rich is None else self._rich.learners
        return self._networks | {name: learner.average for name, learner in learners.items()}


class FewShot(Task[FewShotRunConfig]):
    """A generator of cells of rare types, adapted to a few real images of each."""

    kind = "few_shot"
    launcher = "train_few_shot_gan.py"
    config = FewShotRunConfig
    session = FewShotSession
    load = staticmethod(load_few_shot_model)
    keeps_last = True
    makes_images = True

    def build(self, config: FewShotRunConfig, types: int, setting: Setting) -> Algorithm:
        """The training on rich types; of an algorithm without, the adaptation."""
        algorithm = episode_class(config.model)
        # Two rounds: the first allocates Adam's state, the second has the peak.
        inner = dataclasses.replace(config.model.inner, rounds=min(config.model.inner.rounds, 2))
        model = dataclasses.replace(config.model, inner=inner)
        if setting.precision == "fp16":
            # fp16's loss scale reads values, which fake tensors lack; bf16 needs the same memory and no loss scale.
            setting = dataclasses.replace(setting, precision="bf16")
        networks = algorithm.build_networks(model, config.data.image_size)
        if algorithm.learns_from_rich(model):
            return algorithm.training_on_rich(dataclasses.replace(config, model=model), networks, setting)
        decay, rehearsal = config.adaptation.average_decay, setting.rehearsal
        episode = algorithm(networks, model, setting.precision, decay, rehearsal=rehearsal)
        images = torch.empty(0, 3, config.data.image_size, config.data.image_size)
        return EpisodeOfRounds(episode, images, [], model.inner.moves, setting.total_steps, 0)

    def count_epoch_steps(self, config: FewShotRunConfig, dataset: Dataset, topology: Topology) -> int:
        data = data_of_run(config, dataset, learns_from_rich=True)
        return rich_stream(config, dataset, data, topology).batches_per_epoch

    def check_ranks(self, config: FewShotRunConfig, ranks: int) -> None:
        if episode_class(config.model).runs_episodes(config.model):
            require_whole_episodes(config, ranks)

    def selection(self, config: FewShotRunConfig, dataset: Dataset) -> Selection | None:
        """Kernel distance of the images of short adaptations to rare types, after each epoch on the rich types.

        None for a model that does not learn from rich types.
        """
        return Selection("kernel_distance", higher_is_better=False) if self.trains_in_steps(config) else None

    def trains_in_steps(self, config: FewShotRunConfig) -> bool:
        return episode_class(config.model).learns_from_rich(config.model)

    def planned_episode(self, config: FewShotRunConfig) -> int | None:
        """Images of an episode; a plain training on rich types has micro-batches."""
        algorithm = episode_class(config.model)
        plain = algorithm.learns_from_rich(config.model) and not algorithm.runs_episodes(config.model)
        return None if plain else config.shots

    def learned(self, config: FewShotRunConfig, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
        """Training images of rich and rare types, and validation images, which choose the adaptations' checkpoints."""
        learns_from_rich = episode_class(config.model).learns_from_rich(config.model)
        data = data_of_run(config, dataset, learns_from_rich=learns_from_rich)
        held = validation_images(dataset, config.data, data.rare).values()
        chosen = [each for ids in held if len(ids) >= FEWEST for each in ids]
        own = LearnedImages.of(dataset, {"trained": [*data.rich_ids, *data.rare_ids], "chosen": chosen})
        return LearnedImages.joined([own, learned_by_features(config.features), learned_by_makers(dataset)])

    def logs(self, run: Path) -> list[Path]:
        """The run and its adaptations."""
        return [run, *sorted((run / "adapted").glob("*"))]


TASK = FewShot()


def rich_stream(config: FewShotRunConfig, dataset: Dataset, data: FewShotData, topology: Topology) -> Stream:
    """Images of rich types: each rank's slice of a global batch is whole episodes, or every type equally often."""
    make_order = None
    if episode_class(config.model).runs_episodes(config.model):
        require_whole_episodes(config, topology.world_size)

        def make_order(labels: npt.ArrayLike) -> Order:
            return EpisodeOrder(labels, config.seed, config.shots, config.train.global_batch)

    return Stream(
        dataset,
        dataclasses.replace(config.data, cell_types=None, sampling="class_balanced", order="global"),
        splits=["train"],
        cell_types=data.rich,
        ids=data.rich_ids,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        seed=config.seed,
        training=True,
        topology=topology,
        make_order=make_order,
    )


def require_whole_episodes(config: FewShotRunConfig, ranks: int) -> None:
    """UserError where so many ranks cannot share a step out as whole episodes."""
    together = config.shots * ranks
    if config.train.global_batch % together:
        raise UserError(
            f"train.global_batch={config.train.global_batch}: {ranks} processes run whole episodes of "
            f"shots={config.shots} images each; give a multiple of {together}"
        )
