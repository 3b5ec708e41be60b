"""Training the networks of stain normalisation, from their configuration to a run directory."""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.domains import refuse_unknown_domains
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.stream.augment import UNCHANGED
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from data_pipeline.threads import divide, thread_share
from models.stain.build import Generator
from models.stain.colour_statistics import ColourStatistics
from trainer.learners.choices import EngineName, Precision
from trainer.learners.learner import Learner
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.learners.topology import resolve_engine, resolve_precision
from trainer.loop.fit import Algorithm, fit, resume
from trainer.planning.micro_batch import with_found_micro_batch
from trainer.runs.provenance import learned_at_start, learned_by_stain_model
from trainer.runs.run_directory import fingerprint, settings, write_run_config
from trainer.tasks.stain.algorithms.cyclegan import CycleGan
from trainer.tasks.stain.algorithms.pix2pix import Pix2Pix
from trainer.tasks.stain.algorithms.stain_student import StainStudent
from trainer.tasks.stain.algorithms.w_cyclegan_gp import WCycleGanGp
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.load import TrainedStainModel, build_critics, build_generators, into_domains, load_stain_model
from trainer.tasks.stain.sheets import StainSheets


def train_stain_model(config: StainRunConfig, topology: Topology) -> Path:
    """Train to the end, or go on where the run's newest checkpoint stands; returns the run directory."""
    config = with_found_micro_batch(config, topology)
    dataset, run = config.open_dataset(), Path(str(config.run))
    config = with_domains(dataset, config)
    precision = resolve_precision(config.train.precision, topology.device)
    cell_types = shared_cell_types(dataset, config, topology)
    streams = training_streams(dataset, config, cell_types, topology)
    epoch_steps = config.train.iterations_per_epoch or min(stream.batches_per_epoch for stream in streams.values())
    algorithm = _make_algorithm(dataset, config, cell_types, precision, config.train.epochs * epoch_steps, topology)
    facts = {"data set": dataset.content_hash, "cell types": ",".join(cell_types), "precision": precision}
    values = settings(config, StainRunConfig, streams["a"].config.order)
    made_with = fingerprint(values, facts, free=("samples_per_type",))
    progress = resume(run, algorithm, made_with)
    if topology.rank == 0:
        content = {
            **config.location(dataset),
            "cell_types": list(cell_types),
            "dataset_hash": dataset.content_hash,
        }
        write_run_config(run, values | content)
        learned_at_start(run, dataset, lambda: learned_by_stain_model(config, dataset, cell_types)).save(run)
    sheets = StainSheets(dataset, config, cell_types, run) if topology.rank == 0 else None

    def score_epoch(step: int) -> dict[str, float]:
        if sheets is not None:
            generators = algorithm.learners["generators"]
            with generators.autocast():
                sheets.draw(generators.average, generators.device, step)
        return {}

    fit(
        algorithm,
        streams,
        score_epoch,
        config.train,
        epoch_steps=epoch_steps,
        run=run,
        seed=config.seed,
        topology=topology,
        precision=precision,
        fingerprint=made_with,
        progress=progress,
    )
    return run


def with_domains(dataset: Dataset, config: StainRunConfig) -> StainRunConfig:
    """The configuration with both domains named. UserError unless the data set has them."""
    counts = dataset.samples(columns=["domain"])["domain"].value_counts()
    here = ", ".join(sorted(counts.index))
    if len(counts) < 2:
        raise UserError(
            f"{dataset.root}: images of one domain only ({here}): add a source stained differently with "
            "build_shards.py, domain=NAME"
        )
    refuse_unknown_domains(filter(None, (config.a, config.b)), counts.index, f"a= and b= in {dataset.root}")
    refuse_unknown_domains(config.folds, counts.index, f"folds= and {dataset.root}")
    if config.a is None and config.b is None:
        if len(counts) > 2:
            raise UserError(f"{dataset.root}: images of {len(counts)} domains ({here}): name two of them, a= and b=")
        return dataclasses.replace(config, a=str(counts.index[0]), b=str(counts.index[1]))
    if config.a is None or config.b is None or config.a == config.b:
        raise UserError(f"a={config.a} b={config.b}: name two different domains of {here}, or neither")
    return config


def shared_cell_types(dataset: Dataset, config: StainRunConfig, topology: Topology) -> tuple[str, ...]:
    """The types shown: with matching those that both domains have, and a word on those left out."""
    present = {
        domain: set(
            dataset.samples(
                splits=_splits(config, domain),
                domains=[domain],
                cell_types=config.data.cell_types,
                folds=config.folds.get(domain),
                columns=["cell_type"],
            )["cell_type"]
        )
        for domain in (str(config.a), str(config.b))
    }
    if config.matching == "none":
        return tuple(name for name in (*CELL_TYPES, "") if any(name in types for types in present.values()))
    shared = tuple(name for name in CELL_TYPES if all(name in types for types in present.values()))
    if not shared:
        raise UserError(
            f"{dataset.root}: no cell type has training images in both {config.a} and {config.b}: "
            "use matching=none to train on unmatched images"
        )
    for domain, types in present.items():
        for name in CELL_TYPES:
            if topology.rank == 0 and name in types and name not in shared:
                print(f"{name}: training images in {domain} only, so this type is left out", file=sys.stderr)
    return shared


def _splits(config: StainRunConfig, domain: str) -> list[str] | None:
    """Training images only, or where folds are named for the domain, all splits of those folds."""
    return None if domain in config.folds else ["train"]


def training_streams(
    dataset: Dataset, config: StainRunConfig, cell_types: Sequence[str], topology: Topology
) -> dict[str, Stream]:
    matched = config.matching == "cell_type"
    # Both are read in every step, and decode side by side on a GPU.
    division = divide(thread_share().threads, topology.gpu is not None, streams=2)
    threads = min(config.data.threads or division.decode, division.decode)
    prefetch = config.data.prefetch if division.overlap else 1
    sizes = [
        len(
            dataset.samples(
                splits=_splits(config, domain),
                domains=[domain],
                cell_types=cell_types,
                folds=config.folds.get(domain),
                columns=["id"],
            )
        )
        for domain in (str(config.a), str(config.b))
    ]
    return {
        name: Stream(
            dataset,
            dataclasses.replace(_stream_config(config, domain), threads=threads, prefetch=prefetch),
            splits=_splits(config, domain),
            cell_types=cell_types,
            folds=config.folds.get(domain),
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            seed=config.seed,
            training=True,
            topology=topology,
            epoch_size=max(sizes) if matched else None,
        )
        for name, domain in (("a", str(config.a)), ("b", str(config.b)))
    }


def _stream_config(config: StainRunConfig, domain: str) -> StreamConfig:
    sampling = "class_balanced" if config.matching == "cell_type" else config.data.sampling
    return dataclasses.replace(config.data, domains=[domain], cell_types=None, sampling=sampling)


# Images whose colours tell a domain's: the averages' errors are then a twentieth of one image's deviation.
_IMAGES_FOR_COLOURS = 512


def _typical_colours(
    dataset: Dataset, config: StainRunConfig, domain: str, cell_types: Sequence[str], topology: Topology
) -> ColourStatistics:
    """The average colour statistics of a domain's training images, as training draws them; the same everywhere."""
    batch = config.train.global_batch
    stream = Stream(
        dataset,
        dataclasses.replace(_stream_config(config, domain), augment=UNCHANGED),
        splits=_splits(config, domain),
        cell_types=cell_types,
        folds=config.folds.get(domain),
        global_batch=batch,
        seed=config.seed,
        training=True,
        topology=Topology(device=topology.device),  # each process reads for itself
    )
    parts = itertools.islice(stream.read(), -(-_IMAGES_FOR_COLOURS // batch))
    typical = [ColourStatistics.typical(part.images) for part in parts]
    return ColourStatistics(
        torch.stack([each.mean for each in typical]).mean(0), torch.stack([each.deviation for each in typical]).mean(0)
    )


def _target_of(network: nn.Module) -> Generator:
    (generator,) = (module for module in network.modules() if isinstance(module, Generator))
    return generator


def _make_algorithm(
    dataset: Dataset,
    config: StainRunConfig,
    cell_types: Sequence[str],
    precision: Precision,
    steps: int,
    topology: Topology,
) -> Algorithm:
    model, teacher = config.model, None
    torch.manual_seed(derive_key(config.seed, "weights"))
    networks = build_generators(model, config.data.image_size)
    if model.generator.start == "reinhard":
        for domain, generator in zip((config.a, config.b), into_domains(model, networks), strict=True):
            _target_of(generator).target = _typical_colours(dataset, config, str(domain), cell_types, topology)
    if model.algorithm == "stain_student":
        learned = load_teacher(config)
        if (learned.a, learned.b) != (config.a, config.b):
            raise UserError(
                f"{model.teacher}: taught {learned.a} and {learned.b}, not {config.a} and {config.b}: set a= and b="
            )
        teacher = learned.to_a, learned.to_b
    return make_algorithm(config, networks, teacher, precision, resolve_engine(config.train.engine), steps, topology)


def load_teacher(config: StainRunConfig) -> TrainedStainModel:
    """What a stain_student learns from. UserError where no run is named, or that one is no stain run."""
    if config.model.teacher is None:
        raise UserError("model=stain_student needs model.teacher=RUN, a run of train_stain_gan.py to learn from")
    return load_stain_model(Path(config.model.teacher))


def make_algorithm(
    config: StainRunConfig,
    networks: nn.Module,
    teacher: tuple[nn.Module, nn.Module] | None,
    precision: Precision,
    engine: EngineName,
    steps: int,
    topology: Topology,
) -> Algorithm:
    """The algorithm of a run of so many steps, in which these generators learn.

    teacher: of stain_student, what gives an image the stain of a, and of b.
    """
    model = config.model

    def learner(name: str, module: nn.Module, optimizer: OptimizerConfig, moves: int) -> Learner:
        return Learner(name, module, optimizer, precision=precision, engine=engine, total_steps=moves)

    generators = learner("generators", networks, model.generator_optimizer, steps)
    batch = {"global_batch": config.train.global_batch}
    if teacher is not None:
        to_a, to_b = teacher
        return StainStudent(generators, to_a, to_b, world_size=topology.world_size, **batch)
    moves = steps if model.algorithm == "pix2pix" else steps * model.critic_steps
    critics = learner("critics", build_critics(model, config.data.image_size), model.critic_optimizer, moves)
    if model.algorithm == "pix2pix":
        return Pix2Pix(generators, critics, l1_weight=model.l1_weight, world_size=topology.world_size, **batch)
    play = functools.partial(CycleGan, pool_size=model.pool_size) if model.algorithm == "cyclegan" else WCycleGanGp
    return play(
        generators,
        critics,
        model.weights,
        critic_steps=model.critic_steps,
        seed=config.seed,
        topology=topology,
        **batch,
    )
