"""Training a few-shot generator, from its configuration to a run directory: on rich types, then for each rare one."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.stream.sampling import Order
from data_pipeline.stream.stream import Stream, Topology
from trainer.learners.choices import EngineName, Precision
from trainer.learners.learner import Learner
from trainer.learners.topology import leave_processes, resolve_engine, resolve_precision
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.fit import Algorithm, fit, resume
from trainer.runs.provenance import learned_by_few_shot_model
from trainer.runs.run_directory import fingerprint, settings, write_run_config
from trainer.tasks.few_shot.adaptation import Adaptation, begin_episode, saved_adaptation
from trainer.tasks.few_shot.algorithms.mine_gan import Pretraining
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.episodes import EpisodeOrder, FewShotData, data_of_run
from trainer.tasks.few_shot.load import KIND, build_networks
from trainer.tasks.few_shot.reptile import Reptile
from trainer.tasks.few_shot.sheets import FewShotSheets

# Settings that change no weights; of the training on rich types, those of the adaptation don't either.
_FREE = ("sheet_columns", "rare_types")
_OF_ADAPTATION = ("adaptation.images", "adaptation.average_decay")


def train_few_shot_model(config: FewShotRunConfig, topology: Topology) -> Path:
    """Train to the end, or go on where the run's checkpoints stand; returns the run directory.

    The processes part before the adaptation, whose types are spread over them: this one returns when its own are done.
    """
    dataset, run = config.open_dataset(), Path(str(config.run))
    # Episodes and batches of rich types take from everywhere, and a rare type has few images.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, order=config.data.order or "global"))
    data = data_of_run(config, dataset)
    if config.model.learns_from_rich and not data.rich:
        raise UserError(
            f"{dataset.root}: no cell type beside the rare ones ({', '.join(data.rare)}) has training images to learn "
            f"from before: add some, or name fewer rare_types=[...]"
        )
    precision = resolve_precision(config.train.precision, topology.device)
    torch.manual_seed(derive_key(config.seed, "weights"))
    networks = build_networks(config.model, config.data.image_size)
    for network in networks.values():
        network.to(topology.device)
    values = settings(config, FewShotRunConfig, config.data.order) | {
        "rich_types": list(data.rich),
        "rare_types": list(data.rare),
    }
    facts = {"data set": dataset.content_hash, "precision": precision}
    adapted_with = fingerprint(values, facts, free=_FREE)
    for cell_type in data.rare:
        saved_adaptation(run, cell_type, adapted_with)
    content = {
        "kind": KIND,
        **config.location(dataset),
        "domain": data.rare_domain,
        "dataset_hash": dataset.content_hash,
    }
    training = _Training(config, dataset, data, networks, precision, topology)
    if config.model.learns_from_rich:
        made_with = fingerprint(values, facts, free=(*_FREE, *_OF_ADAPTATION))
        networks |= training.learn_from_rich(made_with, values | content)
    else:
        if CheckpointStore(run / "checkpoints").latest() is not None:
            raise UserError(f"{run}: holds a run that was trained on rich types: give another run=DIR")
        if topology.rank == 0:
            write_run_config(run, values | content)
            learned_by_few_shot_model(config, dataset).save(run)
    leave_processes()
    for cell_type in data.rare[topology.rank :: topology.world_size]:
        adaptation = Adaptation(cell_type, config, dataset, data, topology.device)
        adaptation.play(networks, precision, run, adapted_with, training.sheets)
    return run


class _Training:
    """The training on the rich types, which all processes share."""

    def __init__(
        self,
        config: FewShotRunConfig,
        dataset: Dataset,
        data: FewShotData,
        networks: Mapping[str, nn.Module],
        precision: Precision,
        topology: Topology,
    ) -> None:
        self._config, self._dataset, self._data = config, dataset, data
        self._networks, self._precision, self._topology = dict(networks), precision, topology
        self._run = Path(str(config.run))
        self.sheets = FewShotSheets(config, self._run)

    def learn_from_rich(self, made_with: dict[str, Any], content: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Train to the end; returns the networks that learned. content: of the run's config.yaml."""
        config, topology = self._config, self._topology
        stream = rich_stream(config, self._dataset, self._data, topology)
        epoch_steps = config.train.iterations_per_epoch or stream.batches_per_epoch
        engine = resolve_engine(config.train.engine)
        steps = config.train.epochs * epoch_steps
        algorithm = make_algorithm(config, self._networks, self._precision, engine, steps, topology)
        progress = resume(self._run, algorithm, made_with)
        if topology.rank == 0:
            write_run_config(self._run, content)
            learned_by_few_shot_model(config, self._dataset).save(self._run)
        adaptations: list[Adaptation] = []

        def score_epoch(step: int) -> dict[str, float]:
            if topology.rank == 0:
                if not adaptations:
                    adaptations.extend(
                        Adaptation(name, config, self._dataset, self._data, topology.device) for name in self._data.rare
                    )
                for adaptation in adaptations:
                    episode = adaptation.preview(self._learned(algorithm), self._precision)
                    moment = f"step-{step:09d}"
                    self.sheets.draw(adaptation.cell_type, adaptation.images, episode.averages, moment)
            return {}

        fit(
            algorithm,
            {"train": stream},
            score_epoch,
            config.train,
            epoch_steps=epoch_steps,
            run=self._run,
            seed=config.seed,
            topology=topology,
            precision=self._precision,
            fingerprint=made_with,
            progress=progress,
        )
        return self._learned(algorithm)

    def _learned(self, algorithm: Algorithm) -> dict[str, nn.Module]:
        """All networks, with the averaged weights of those that have learned and keep an average."""
        return self._networks | {name: learner.average for name, learner in algorithm.learners.items()}


def rich_stream(config: FewShotRunConfig, dataset: Dataset, data: FewShotData, topology: Topology) -> Stream:
    """Images of rich types: each process's slice of a global batch is whole episodes, or every type equally often."""
    make_order = None
    if config.model.plays_episodes:
        config.check_processes(topology.world_size)

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


def make_algorithm(
    config: FewShotRunConfig,
    networks: Mapping[str, nn.Module],
    precision: Precision,
    engine: EngineName,
    steps: int,
    topology: Topology,
) -> Algorithm:
    """The algorithm of so many steps on rich types, in which these networks learn."""
    model = config.model
    optimizer = model.scaled_optimizer(steps)
    if model.plays_episodes:
        # The outer loop's gradient is a difference of weights; half precision is the inner loop's.
        learners = {
            name: Learner(name, network, optimizer, precision="fp32", engine=engine, total_steps=steps)
            for name, network in networks.items()
        }
        begin = functools.partial(begin_episode, model, precision=precision)
        return Reptile(learners, begin, rounds=model.inner.rounds, shots=config.shots, seed=config.seed)
    generator, discriminator = (
        Learner(
            name,
            networks[name],
            optimizer,
            precision=precision,
            engine=engine,
            total_steps=steps * moves,
        )
        for name, moves in (("generator", 1), ("discriminator", model.inner.discriminator_steps))
    )
    return Pretraining(
        generator,
        discriminator,
        model.weights,
        discriminator_steps=model.inner.discriminator_steps,
        global_batch=config.train.global_batch,
        seed=config.seed,
        world_size=topology.world_size,
    )
