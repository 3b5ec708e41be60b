"""The images of a laboratory that a classifier is adapted to, and those of its own training beside them."""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.randomness import derive_key
from data_pipeline.sources import SourceDeclaration, read_label_mapping
from data_pipeline.sources.fields import has_annotated_fields
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.sampling import ClassBalancedOrder
from data_pipeline.stream.stream import Stream, Topology
from trainer.runs.provenance import learned_by_run
from trainer.tasks.classification.adaptation.config import AdaptConfig
from trainer.tasks.classification.inference.load import TrainedClassifier
from trainer.tasks.classification.inference.scale import nucleus_of_domain

# Name of the data set that is built of a laboratory's raw images, in the new run; and of their domain.
FOLDER = "laboratory"
# Name of the source of unlabelled raw images.
_UNLABELLED = "images"
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Some images of a data set with their labels, in the order of their ids."""

    dataset: Dataset
    config: StreamConfig  # how they are read and, for training, augmented
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Numbers  # indices into the adapted classifier's types; -1: unlabelled
    topology: Topology

    def __len__(self) -> int:
        return len(self.ids)

    def chosen(self, rows: Numbers) -> "Images":
        """Only these rows."""
        rows = np.sort(rows)
        ids, groups = (tuple(np.array(names, object)[rows]) for names in (self.ids, self.groups))
        return dataclasses.replace(self, ids=ids, groups=groups, labels=self.labels[rows])

    def labelled_as(self, labels: Numbers) -> "Images":
        """The same images with other labels."""
        return dataclasses.replace(self, labels=labels)

    def read(self, batch: int = 64) -> Iterator[torch.Tensor]:
        """Each image once, as it is, in order."""
        for part in self._stream(batch, training=False, seed=0, epoch_size=len(self)).read():
            yield part.images

    def augmented(self, batch: int, seed: int, steps: int) -> Iterator[tuple[torch.Tensor, Numbers]]:
        """Batches of augmented images with their rows, every type equally often."""
        stream = self._stream(batch, training=True, seed=seed, epoch_size=batch * steps)
        for part in itertools.islice(stream.read(), steps):
            yield part.images, part.rows

    def _stream(self, batch: int, *, training: bool, seed: int, epoch_size: int) -> Stream:
        return Stream(
            self.dataset,
            self.config,
            splits=None,
            cell_types=("", *CELL_TYPES),
            ids=self.ids,
            global_batch=batch,
            seed=seed,
            training=training,
            topology=self.topology,
            make_order=(lambda _: ClassBalancedOrder(self.labels, seed, epoch_size)) if training else None,
        )


@dataclass(frozen=True)
class Laboratory:
    """What a classifier is adapted with."""

    cell_types: tuple[str, ...]  # of the adapted classifier: the run's, and those that only the labelled cells have
    labelled: Images
    unlabelled: Images
    home: Images | None  # training images of the run; None where its data set is not at hand
    home_validation: Images | None

    @property
    def everything(self) -> tuple[str, ...]:
        """Ids of all its images."""
        return (*self.labelled.ids, *self.unlabelled.ids)


def open_laboratory(trained: TrainedClassifier, config: AdaptConfig, folder: Path, topology: Topology) -> Laboratory:
    """The laboratory's images: its data set's training split, or one that is built in `folder` of raw images.

    UserError for images that cannot be read, unknown labels, and where there is nothing to adapt to.
    """
    dataset = config.open_dataset() if config.shards else _build(trained, config, folder / FOLDER)
    domains = [config.domain] if config.shards and config.domain else None
    rows = dataset.samples(splits=["train"], domains=domains)
    rows = rows[rows["origin"] == "real"]
    if not len(rows):
        raise UserError(
            f"{dataset.root}: no real training image to adapt to in {config.domain or 'any domain'}: add images with "
            "build_shards.py, or name another domain="
        )
    empty = (rows["cell_type"] == "") | ((rows["source"] == _UNLABELLED) & (config.shards is None))
    _refuse_seen(trained, dataset, rows[~empty]["id"].tolist())
    named = set(rows[~empty]["cell_type"])
    cell_types = tuple(name for name in CELL_TYPES if name in trained.cell_types or name in named)
    known = sorted(set(rows["domain"]))
    crop = {domain: share for domain in known if (share := crop_of(trained, dataset, domain)) != 1}
    data = dataclasses.replace(trained.config.data, domains=known, cell_types=None, crop=crop, order="global")
    home, validation = images_of_home(trained, cell_types, topology)
    return Laboratory(
        cell_types,
        images_of(dataset, data, rows[~empty], cell_types, topology),
        images_of(dataset, data, rows[empty], cell_types, topology),
        home,
        validation,
    )


def crop_of(trained: TrainedClassifier, dataset: Dataset, domain: str) -> float:
    """Share of the sides that is kept of a domain's images: as evaluate.py and predict.py keep, by nuclei or not."""
    by_nuclei = trained.config.nucleus_share is not None and not trained.knows(domain)
    return trained.crop_of(domain, nucleus_of_domain(dataset, domain) if by_nuclei else None)


def _build(trained: TrainedClassifier, config: AdaptConfig, folder: Path) -> Dataset:
    """A data set of raw images, all of them in its training split, stored as the run's own training images are."""
    labels = read_label_mapping(Path(config.labels)) if config.labels else {}
    sources = []
    for name, path, kind in (("labelled", config.labelled, "folder"), (_UNLABELLED, config.images, "unlabelled")):
        if path:
            root = Path(path)
            kind = "table" if root.is_file() else "fields" if has_annotated_fields(root) else kind
            sources.append(SourceDeclaration(kind, name, root, config.domain or FOLDER, labels))
    report = build_dataset(str(folder), sources, settings=trained.storage, ratio=(1.0, 0.0, 0.0))
    for line in report["warnings"]:
        print(line, file=sys.stderr)
    return Dataset.open(folder)


def _refuse_seen(trained: TrainedClassifier, dataset: Dataset, ids: list[str]) -> None:
    """UserError for labelled cells that the run has seen: it knows their types, so their scores would say nothing."""
    seen = learned_by_run(trained.folder).seen_among(dataset, ids)
    if seen.through:
        raise UserError(
            f"{len(seen.through)} of the {seen.count} labelled cells, or others of their patients or slides, were used "
            f"to train or choose {trained.folder} ({seen.words}): leave them out, or adapt a run that has not seen them"
        )


def images_of_home(
    trained: TrainedClassifier, cell_types: Sequence[str], topology: Topology
) -> tuple[Images | None, Images | None]:
    """Training and validation images of the run; None where its data set is not at hand or has changed."""
    try:
        dataset = trained.config.open_dataset()
    except UserError:
        return None, None
    if dataset.content_hash != trained.dataset_hash:
        return None, None
    data = trained.config.data
    rows = dataset.samples(splits=["train", "validation"], domains=data.domains, cell_types=trained.cell_types)
    rows = rows[rows["origin"] != "synthetic"]
    data = dataclasses.replace(data, cell_types=None, order="global")
    train, validation = (
        images_of(dataset, data, rows[rows["split"] == split], cell_types, topology)
        for split in ("train", "validation")
    )
    return (train if len(train) else None), (validation if len(validation) else None)


def images_of(
    dataset: Dataset, config: StreamConfig, rows: pd.DataFrame, cell_types: Sequence[str], topology: Topology
) -> Images:
    numbers = {name: number for number, name in enumerate(cell_types)}
    labels: Numbers = np.asarray(rows["cell_type"].map(numbers).fillna(-1), np.int64)
    return Images(dataset, config, tuple(rows["id"]), tuple(rows["group"]), labels, topology)


def seed_of(config: AdaptConfig, *purpose: str | int) -> int:
    """The seed of one use of random numbers."""
    return derive_key(config.seed, "adapt", *purpose) % 2**31
