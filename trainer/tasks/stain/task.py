"""From one stain to another: generators that give images of one domain the colours of the other."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.domains import ranked_domains, refuse_unknown_domains
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages, learned_by_makers
from data_pipeline.stream.augment import UNCHANGED
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from data_pipeline.threads import divide, thread_share
from models.stain.build import Generator
from models.stain.colour_statistics import ColourStatistics
from trainer.learners.learner import Setting
from trainer.loop.algorithm import Algorithm
from trainer.loop.selection import Selection
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.provenance import learned_by_run
from trainer.runs.registry import algorithm_class
from trainer.runs.task import Session, Task
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.load import load_stain_model
from trainer.tasks.stain.sheets import StainSheets
from trainer.tasks.stain.validation import StainDistance, stain_selection

# Of a rank that prints nothing.
_SILENT = Topology(rank=1, world_size=2)


class StainSession(Session[StainRunConfig]):
    """A training of networks that translate between two stains (domains a and b)."""

    def __init__(self, config: StainRunConfig, dataset: Dataset, topology: Topology) -> None:
        self.dataset, self.topology = dataset, topology
        self.config = config = with_domains(dataset, config)
        self.cell_types = shared_cell_types(dataset, config, topology)
        self.streams = training_streams(dataset, config, self.cell_types, topology)
        batches = min(stream.batches_per_epoch for stream in self.streams.values())
        self.epoch_steps = config.train.iterations_per_epoch or batches
        self._sheets: StainSheets | None = None
        self._distance = StainDistance(dataset, config, self.cell_types, topology)

    def build(self, setting: Setting, *, fresh: bool) -> Algorithm:
        config, algorithm = self.config, algorithm_class("stain", self.config.model.algorithm)
        networks = algorithm.build_generators(config.model, config.data.image_size)
        if config.model.generator.start == "reinhard":
            for domain, network in zip((config.a, config.b), algorithm.into_domains(networks), strict=True):
                (generator,) = (module for module in network.modules() if isinstance(module, Generator))
                generator.target = _typical_colours(self.dataset, config, str(domain), self.cell_types, self.topology)
        built: Algorithm = algorithm(config, networks, setting)
        self._generators = built.learners["generators"]
        if self.topology.rank == 0:
            self._sheets = StainSheets(self.dataset, config, self.cell_types, Path(str(config.run)))
        return built

    def score_epoch(self, step: int) -> dict[str, float]:
        with self._generators.autocast():
            if self._sheets is not None:
                self._sheets.draw(self._generators.average, self._generators.device, step)
            algorithm = algorithm_class("stain", self.config.model.algorithm)
            return self._distance.scores(algorithm.into_domains(self._generators.average.eval()))


class Stain(Task[StainRunConfig]):
    """Networks that give the images of one domain the stain of another."""

    kind = "stain"
    launcher = "train_stain_gan.py"
    config = StainRunConfig
    session = StainSession
    load = staticmethod(load_stain_model)
    keeps_last = True

    def build(self, config: StainRunConfig, types: int, setting: Setting) -> Algorithm:
        algorithm = algorithm_class("stain", config.model.algorithm)
        generators = algorithm.build_generators(config.model, config.data.image_size)
        return algorithm(config, generators, setting)

    def selection(self, config: StainRunConfig, dataset: Dataset) -> Selection | None:
        config = with_domains(dataset, config)
        return stain_selection(dataset, config, shared_cell_types(dataset, config, _SILENT))

    def learned(self, config: StainRunConfig, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
        """Images of both domains, and what the teacher of a student learned from."""
        ids: list[str] = []
        for domain in (str(config.a), str(config.b)):
            ids += _rows(dataset, config, domain, cell_types, "id").tolist()
        parts = [LearnedImages.of(dataset, {"trained": ids}), learned_by_makers(dataset)]
        teacher = config.model.options.get("teacher")
        if teacher is not None:
            parts.append(learned_by_run(Path(teacher)).through(f"{teacher} (model.options.teacher=)"))
        return LearnedImages.joined(parts)

    def evaluate(self, run: Path, config: EvaluateConfig, topology: Topology) -> None:
        from trainer.tasks.stain.scoring import score_run

        score_run(run, config, topology)

    def write_report(self, run: Path) -> Path:
        from trainer.tasks.stain.report import write_stain_report  # here: the first step need not wait for it

        return write_stain_report(run)


TASK = Stain()


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
        a, b = ranked_domains(dataset.samples(columns=["domain"])["domain"])
        return dataclasses.replace(config, a=a, b=b)
    if config.a is None or config.b is None or config.a == config.b:
        raise UserError(f"a={config.a} b={config.b}: name two different domains of {here}, or neither")
    return config


def shared_cell_types(dataset: Dataset, config: StainRunConfig, topology: Topology) -> tuple[str, ...]:
    """The types shown: with matching those that both domains have, and a word on those left out."""
    present = {
        domain: set(_rows(dataset, config, domain, config.data.cell_types, "cell_type"))
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


def _rows(
    dataset: Dataset, config: StainRunConfig, domain: str, cell_types: Sequence[str] | None, column: str
) -> "pd.Series[str]":
    """A column of the images of a domain that the run learns from."""
    splits, folds = _splits(config, domain), config.folds.get(domain)
    return dataset.samples(splits=splits, domains=[domain], cell_types=cell_types, folds=folds, columns=[column])[
        column
    ]


def training_streams(
    dataset: Dataset, config: StainRunConfig, cell_types: Sequence[str], topology: Topology
) -> dict[str, Stream]:
    """The streams `a` and `b` of the two domains."""
    matched = config.matching == "cell_type"
    # Both are read in every step, and decode side by side on a GPU.
    division = divide(thread_share().threads, topology.gpu is not None, streams=2)
    threads = min(config.data.threads or division.decode, division.decode)
    prefetch = config.data.prefetch if division.overlap else 1
    sizes = [len(_rows(dataset, config, domain, cell_types, "id")) for domain in (str(config.a), str(config.b))]
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
