"""Training a classifier from its configuration to its scored, reported run directory."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.split_check import way_out
from data_pipeline.learned_images import LearnedImages, SeenImages
from data_pipeline.randomness import derive_key
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from models.classifiers.architectures.naive_bayes import NaiveBayes
from trainer.learners.choices import EngineName, Precision
from trainer.learners.learner import Learner
from trainer.learners.topology import resolve_engine, resolve_precision
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.fit import AfterEpoch, Selection, fit, resume, saved_state
from trainer.loop.fit_config import FitConfig
from trainer.loop.forecast import Expectation, try_out
from trainer.metrics.evaluation import save_evaluation
from trainer.planning.micro_batch import with_found_micro_batch
from trainer.runs.provenance import learned_at_start, learned_by_classifier, say, unseen
from trainer.runs.run_directory import fingerprint, settings, write_run_config
from trainer.runs.training_data import save_training_data
from trainer.tasks.classification.algorithms.cross_entropy import Classification
from trainer.tasks.classification.calibration import fit_temperature, save_calibration
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.evaluation import evaluate, predict_all, scoring_stream, validation_scores
from trainer.tasks.classification.load import TrainedClassifier, build_network, load_classifier
from trainer.tasks.classification.model_advice import advise_model
from trainer.tasks.classification.model_card import write_model_card
from trainer.tasks.classification.naive_bayes import fit_naive_bayes
from trainer.tasks.classification.report import write_run_report
from trainer.tasks.stain.normalizers.bundle import FILE

HELD_OUT = ("validation", "test")


def train_classifier(config: ClassifierRunConfig, topology: Topology, after_epoch: AfterEpoch | None = None) -> Path:
    """Train, calibrate and score with the best checkpoint, write model card and report; returns the report's path.

    A run that was cut off goes on where its newest checkpoint stands; a finished one is scored again.
    after_epoch: see `fit`.
    """
    config = with_found_micro_batch(config, topology)
    dataset, run = config.open_dataset(), Path(str(config.run))
    precision = resolve_precision(config.train.precision, topology.device)
    cell_types = known_cell_types(dataset, config.data)
    stream = training_stream(dataset, config, cell_types, topology)
    learned = learned_at_start(run, dataset, lambda: learned_by_classifier(config, dataset, cell_types))
    # The test split too is opened now: that it cannot be scored is better known before the training.
    held_out, test = (_held_out(split, learned, dataset, config, cell_types, topology) for split in HELD_OUT)
    torch.manual_seed(derive_key(config.seed, "weights"))
    # A run that goes on has its own weights, wherever those that it began with are now.
    begun = CheckpointStore(run / "checkpoints").latest() is not None
    model = dataclasses.replace(config.model, weights=None) if begun else config.model
    network = build_network(model, len(cell_types), config.data.image_size)
    epoch_steps = config.train.iterations_per_epoch or stream.batches_per_epoch
    values = settings(config, ClassifierRunConfig, stream.config.order)
    facts = {"data set": dataset.content_hash, "cell types": ",".join(cell_types), "precision": precision}
    made_with = fingerprint(values, facts)

    def describe_run() -> None:
        """To be called when it is known that an older run is not another one."""
        if topology.rank == 0:
            content = {
                **config.location(dataset),
                "cell_types": list(cell_types),
                "dataset_hash": dataset.content_hash,
                "storage": dataset.metadata["settings"],
                "normalizer": _take_normalizer(dataset, run),
            }
            write_run_config(run, values | content)
            learned.save(run)

    if isinstance(network, NaiveBayes):
        finished = saved_state(run, made_with) is not None
        describe_run()
        if not finished:
            fit_naive_bayes(
                network,
                stream,
                held_out.stream,
                steps=epoch_steps,
                select_by=config.train.select_by,
                run=run,
                topology=topology,
                fingerprint=made_with,
                after_epoch=after_epoch,
            )
    else:
        _train_by_gradient(
            network,
            stream,
            held_out.stream,
            config,
            epoch_steps=epoch_steps,
            topology=topology,
            precision=precision,
            fingerprint=made_with,
            describe_run=describe_run,
            after_epoch=after_epoch,
        )
    trained = _calibrated(load_classifier(run), held_out.stream, run, topology)
    result, frame = evaluate(
        trained.network.to(topology.device),
        trained.checkpoint,
        dataset,
        config.data,
        splits=["test"],
        cell_types=cell_types,
        batch=scoring_batch(config.train),
        topology=topology,
        calibration=trained.calibration,
        seen=test.seen,
    )
    if topology.rank != 0:
        return run / "report.html"
    save_evaluation(run, result, frame, own_test=True)
    save_training_data(run, dataset, config.data)
    write_model_card(run)
    return write_run_report(run)


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """A split that a run is scored on. stream: without the images that were seen."""

    stream: Stream
    seen: SeenImages


def _held_out(
    split: str,
    learned: LearnedImages,
    dataset: Dataset,
    config: ClassifierRunConfig,
    cell_types: Sequence[str],
    topology: Topology,
) -> _HeldOut:
    """The validation or test split. UserError where there is none, or what the run begins with has seen it."""
    domains = config.data.domains
    ids = dataset.samples(splits=[split], domains=domains, cell_types=cell_types, columns=["id"])["id"].tolist()
    # Validation may choose twice, as it does in a run that begins with the weights of an older one.
    before = learned.of_role("trained") if split == "validation" else learned
    seen = unseen(before, dataset, ids, config.seen_images, f"split {split}", "begin with other weights or images")
    if topology.rank == 0:
        say(seen, split)
    stream = scoring_stream(
        dataset,
        dataclasses.replace(config.data, cell_types=None),
        splits=[split],
        cell_types=cell_types,
        batch=scoring_batch(config.train),
        topology=topology,
        left_out=seen.through,
    )
    return _HeldOut(stream, seen)


def _calibrated(trained: TrainedClassifier, held_out: Stream, run: Path, topology: Topology) -> TrainedClassifier:
    """With a temperature fitted to the best checkpoint on the validation images, which the run keeps."""
    if trained.calibration.checkpoint == trained.checkpoint.digest:
        return trained
    logits = predict_all(trained.network.to(topology.device), held_out)
    calibration = fit_temperature(logits, torch.tensor(held_out.labels), trained.checkpoint.digest)
    if topology.rank == 0:
        save_calibration(run, calibration)
    return dataclasses.replace(trained, calibration=calibration)


def _train_by_gradient(
    network: nn.Module,
    stream: Stream,
    held_out: Stream,
    config: ClassifierRunConfig,
    *,
    epoch_steps: int,
    topology: Topology,
    precision: Precision,
    fingerprint: dict[str, Any],
    describe_run: Callable[[], None],
    after_epoch: AfterEpoch | None,
) -> None:
    """Train the network from where the run's newest checkpoint stands to the end."""
    run, engine = Path(str(config.run)), resolve_engine(config.train.engine)
    expectation = _expect(network, stream, config, topology)
    algorithm = make_algorithm(config, network, precision, engine, config.train.epochs * epoch_steps, topology)
    classifier = algorithm.learners["classifier"]

    def validate(step: int) -> dict[str, float]:
        classifier.share_buffers()
        with classifier.autocast():
            return validation_scores(classifier.average, held_out)

    progress = resume(run, algorithm, fingerprint)
    describe_run()
    fit(
        algorithm,
        {"train": stream},
        validate,
        config.train,
        epoch_steps=epoch_steps,
        run=run,
        seed=config.seed,
        topology=topology,
        precision=precision,
        fingerprint=fingerprint,
        progress=progress,
        selection=Selection(config.train.select_by, config.train.patience),
        after_epoch=after_epoch,
        expectation=expectation,
    )


def _expect(network: nn.Module, stream: Stream, config: ClassifierRunConfig, topology: Topology) -> Expectation:
    """What is told of a training's time before it is measured. On a CPU, where a first step may take minutes."""
    if topology.device.type != "cpu" or topology.rank != 0:
        return Expectation()
    size, types = config.data.image_size, len(stream.cell_types)
    seconds = try_out(network, size, -(-stream.global_batch // topology.world_size))
    return Expectation(seconds, partial(advise_model, config.model, types, size))


def training_stream(
    dataset: Dataset, config: ClassifierRunConfig, cell_types: Sequence[str], topology: Topology
) -> Stream:
    """What a classifier learns from."""
    return Stream(
        dataset,
        config.data,
        splits=["train"],
        cell_types=cell_types,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        seed=config.seed,
        training=True,
        topology=topology,
    )


def make_algorithm(
    config: ClassifierRunConfig,
    network: nn.Module,
    precision: Precision,
    engine: EngineName,
    steps: int,
    topology: Topology,
) -> Classification:
    """The algorithm of a run of so many steps, on this network."""
    classifier = Learner(
        "classifier",
        network,
        config.optimizer,
        precision=precision,
        engine=engine,
        total_steps=steps,
        synchronize_batch_norm=config.train.synchronize_batch_norm,
        choices=config.train.network_choices,
    )
    return Classification(
        classifier,
        label_smoothing=config.train.label_smoothing,
        global_batch=config.train.global_batch,
        world_size=topology.world_size,
    )


def _take_normalizer(dataset: Dataset, run: Path) -> str | None:
    """Copy the normaliser that comes with a data set into the run; its file name there, or None."""
    if FILE not in dataset.metadata.get("attachments", {}):
        return None
    run.mkdir(parents=True, exist_ok=True)
    aside = run / f"{FILE}.new"
    shutil.copyfile(dataset.attachment_path(FILE), aside)
    aside.replace(run / FILE)
    return FILE


def known_cell_types(dataset: Dataset, config: StreamConfig) -> tuple[str, ...]:
    """The types a classifier learns: those with training images, in the order of CELL_TYPES."""
    present = set(
        dataset.samples(splits=["train"], domains=config.domains, cell_types=config.cell_types, columns=["cell_type"])[
            "cell_type"
        ]
    )
    missing = [name for name in config.cell_types or [] if name not in present]
    if missing:
        raise UserError(f"{dataset.root}: no training image of {', '.join(missing)}: see data.cell_types")
    known = tuple(name for name in CELL_TYPES if name in present)
    if len(known) < 2:
        raise UserError(
            f"{dataset.root}: training images of {len(known)} cell types in domains {config.domains or 'all'}: "
            "a classifier needs two at least; " + (way_out(dataset, ["train"]) or "see the counts in build_report.json")
        )
    return known


def scoring_batch(config: FitConfig) -> int:
    """Images a process scores at a time: scoring keeps no gradients, so what training fits fits here."""
    return config.micro_batch or min(config.global_batch, 128)
