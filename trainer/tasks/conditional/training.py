"""Training a generator of cells from its configuration to a run directory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import Stream, Topology
from trainer.learners.choices import EngineName, Precision
from trainer.learners.learner import Learner
from trainer.learners.topology import resolve_engine, resolve_precision
from trainer.loop.fit import fit, resume
from trainer.planning.micro_batch import with_found_micro_batch
from trainer.runs.provenance import learned_at_start, learned_by_conditional_model
from trainer.runs.run_directory import fingerprint, settings, write_run_config
from trainer.tasks.conditional.algorithm import ConditionalAlgorithm
from trainer.tasks.conditional.config import MODERATE_TYPES, ConditionalRunConfig
from trainer.tasks.conditional.load import ALGORITHMS, KIND, build_networks
from trainer.tasks.conditional.sheets import ConditionalSheets


def train_conditional_model(config: ConditionalRunConfig, topology: Topology) -> Path:
    """Train to the end, or go on where the run's newest checkpoint stands; returns the run directory."""
    config = with_found_micro_batch(config, topology)
    dataset, run = config.open_dataset(), Path(str(config.run))
    precision = resolve_precision(config.train.precision, topology.device)
    cell_types = chosen_cell_types(dataset, config)
    stream = training_stream(dataset, config, cell_types, topology)
    epoch_steps = config.train.iterations_per_epoch or max(1, stream.batches_per_epoch // config.model.critic_steps)
    engine = resolve_engine(config.train.engine)
    algorithm = make_algorithm(config, len(cell_types), precision, engine, config.train.epochs * epoch_steps, topology)
    facts = {"data set": dataset.content_hash, "cell types": ",".join(cell_types), "precision": precision}
    values = settings(config, ConditionalRunConfig, stream.config.order)
    made_with = fingerprint(values, facts, free=("samples_per_type",))
    progress = resume(run, algorithm, made_with)
    if topology.rank == 0:
        content = {
            "kind": KIND,
            **config.location(dataset),
            "cell_types": list(cell_types),
            "domain": str(stream.samples["domain"].mode()[0]),
            "dataset_hash": dataset.content_hash,
        }
        write_run_config(run, values | content)
        learned_at_start(run, dataset, lambda: learned_by_conditional_model(config, dataset, cell_types)).save(run)
    sheets = ConditionalSheets(dataset, config, cell_types, run) if topology.rank == 0 else None

    def score_epoch(step: int) -> dict[str, float]:
        if sheets is not None:
            generator = algorithm.learners["generator"]
            sheets.draw(generator.average, algorithm.conditions, generator.device, step)
        return {}

    fit(
        algorithm,
        {"train": stream},
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


def make_algorithm(
    config: ConditionalRunConfig, types: int, precision: Precision, engine: EngineName, steps: int, topology: Topology
) -> ConditionalAlgorithm:
    """The algorithm of a run of so many steps, its networks fresh, for so many cell types."""
    model = config.model
    torch.manual_seed(derive_key(config.seed, "weights"))
    optimizers = {
        "generator": model.generator_optimizer,
        "critic": model.critic_optimizer,
        "classifier": model.classifier_optimizer,
    }
    learners = {
        name: Learner(
            name,
            network,
            optimizers[name],
            precision=precision,
            engine=engine,
            total_steps=steps * (model.critic_steps if name == "critic" else 1),
        )
        for name, network in build_networks(model, config.data.image_size, types).items()
    }
    return ALGORITHMS[model.algorithm](
        learners,
        model.weights,
        types=types,
        latent_size=model.generator.latent_size,
        critic_steps=model.critic_steps,
        total_steps=steps,
        global_batch=config.train.global_batch,
        seed=config.seed,
        topology=topology,
    )
