"""The page on which an expert reviews the labels of a data set."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.curate import CONFLICT
from data_pipeline.ingest.duplicates import same_pictures
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.images import HASH_BYTES
from data_pipeline.progress_bar import track
from data_pipeline.shards.build_files import BUILT
from data_pipeline.sources import SourceDeclaration
from data_pipeline.stream.stream import Stream, Topology
from models.classifiers.architectures.frozen import FrozenClassifier
from trainer.loop.clock import StepClock
from trainer.metrics.label_quality import neighbour_distances
from trainer.reports.gallery import small_picture
from trainer.reports.review_page import SIDE, ReviewImage, ReviewItem, write_review_page
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.load import build_network
from trainer.tasks.classification.inference.logits import scoring_batch
from trainer.tasks.classification.review.cross_fit import cross_fit
from trainer.tasks.classification.review.order import Asked, Why, review_order
from trainer.tasks.classification.training.fitting import frozen_passes, take_features
from trainer.tasks.classification.training.heads import discriminants_out_of_fold, folds_for_all

# What the page says of an image, and how the printed summary names such images.
_WORDS: dict[Why, tuple[str, str]] = {
    "conflict": ("One cell with two labels; it is left out of the data set until you decide.", "with two labels"),
    "label": ("The label may be wrong: a classifier that never saw this image disagrees.", "labels may be wrong"),
    "pair": ("Nearly the same picture as the one beside it. If it is a copy, leave one out.", "near duplicates"),
    "unsure": ("A classifier that never saw this image is unsure.", "a classifier is unsure"),
    "unusual": ("This image is unlike all others of the data set.", "unlike all others"),
}


@dataclass(frozen=True)
class Judged:
    """The labelled images of a data set, and what a classifier that has not learned from each says of it."""

    samples: pd.DataFrame  # n rows of the catalogue
    cell_types: tuple[str, ...]
    labels: NDArray[np.int64]  # [n]
    probabilities: NDArray[np.float32]  # [n, types], out of fold
    distances: NDArray[np.float32]  # [n], to its neighbours in the classifier's features

    def answer(self, row: int) -> str:
        """'monocyte 94 %, lymphocyte 3 %'."""
        best = self.probabilities[row].argsort()[::-1][:2]
        return ", ".join(f"{self.cell_types[kind]} {100 * self.probabilities[row, kind]:.0f} %" for kind in best)


def write_review(
    config: ClassifierRunConfig, out: Path, *, splits: Sequence[str], folds: int, images: int, topology: Topology
) -> None:
    """Write the page of the images that are most worth an expert's time, and print what they are.

    config: data set, and the classifiers that judge its images, see `judge`. images: at most so many on the page.
    UserError for a data set that was not built from raw images, and where nothing is left.
    """
    dataset = config.open_dataset()
    if dataset.metadata["made_by"] != BUILT:
        raise UserError(f"{dataset.root}: made from another data set: review that one, and make this one again")
    judged = judge(config, dataset, splits, folds, topology)
    conflicts = _conflicts(dataset)
    asked = conflicts[conflicts["split"].isin(splits)]
    order = review_order(
        judged.samples["id"].tolist(),
        judged.labels,
        judged.probabilities,
        judged.distances,
        conflicts=zip(asked["id"], asked["other"], strict=True),
        copies=_copies(dataset, judged.samples),
        decided={decision["id"] for decision in dataset.metadata.get("decisions", [])},
    )
    items = _items(dataset, judged, conflicts, order[:images])
    if not items:
        raise UserError(f"{dataset.root}: experts have decided about all its images of split {'/'.join(splits)}")
    present = [name for name in CELL_TYPES if name in judged.cell_types]
    write_review_page(
        out, items, dataset=Path(dataset.address).name, content_hash=dataset.content_hash, present=present
    )
    _tell(order, images)
    print(out.resolve())


def judge(
    config: ClassifierRunConfig, dataset: Dataset, splits: Sequence[str], folds: int, topology: Topology
) -> Judged:
    """Judge every labelled image of the splits by a classifier that learned from the other folds, patients apart.

    model=frozen: linear discriminants of one network's features. Others are trained without each fold.
    """
    present = set(dataset.samples(splits=splits, domains=config.data.domains, columns=["cell_type"])["cell_type"])
    cell_types = tuple(name for name in CELL_TYPES if name in present)
    if len(cell_types) < 2:
        raise UserError(f"{dataset.root}: labelled images of {len(cell_types)} cell types; a review needs two at least")
    stream = Stream(
        dataset,
        config.data,
        splits=splits,
        cell_types=cell_types,
        global_batch=scoring_batch(config.train),
        training=False,
        topology=topology,
    )
    labels, groups = np.asarray(stream.labels, np.int64), stream.samples["group"].to_numpy()
    held_out = folds_for_all(labels, groups, folds)
    if not held_out:
        raise UserError(f"{dataset.root}: all images are of one patient or slide, so none can be held out")
    if config.model.architecture == "naive_bayes":
        raise UserError(f"model={config.model.name} has no features of layers: review with another model")
    if config.model.architecture == "frozen":
        network = build_network(config.model, len(cell_types), config.data.image_size)
        assert isinstance(network, FrozenClassifier)
        images = frozen_passes(network, dataset, config, [stream], stream)[0][0]
        features, _ = take_features(network.to(topology.device).eval(), images, topology, StepClock())
        probabilities = discriminants_out_of_fold(features, labels, len(cell_types), held_out)
        return Judged(stream.samples, cell_types, labels, probabilities, neighbour_distances(features))
    probabilities = np.empty((len(labels), len(cell_types)), np.float32)
    distances = np.empty(len(labels), np.float32)
    for fold in cross_fit(config, dataset, stream, held_out, topology):
        probabilities[fold.rows] = fold.probabilities
        distances[fold.rows] = neighbour_distances(fold.features)
    return Judged(stream.samples, cell_types, labels, probabilities, distances)


def _copies(dataset: Dataset, samples: pd.DataFrame) -> list[tuple[int, int]]:
    """Rows of `samples`, earlier and later, that show nearly the same picture."""
    hashes = dataset.samples(columns=["id", "perceptual_hash"]).set_index("id")["perceptual_hash"]
    known = hashes[samples["id"]].reset_index(drop=True).dropna()
    rows = np.frombuffer(b"".join(known), np.uint8).reshape(-1, HASH_BYTES)
    return [(int(known.index[earlier]), int(known.index[later])) for earlier, later in same_pictures(rows)]


def _conflicts(dataset: Dataset) -> pd.DataFrame:
    """Rows that are left out as their cell carries another label elsewhere; other: the id of the image that does."""
    rows = dataset.table.to_pandas()
    place = rows["source"] + ":" + rows["path"]
    named = rows["id"].set_axis(place)[~place.duplicated().to_numpy()]
    rows = rows[rows["reason"].str.startswith(f"{CONFLICT}: ")]
    return rows.assign(other=rows["reason"].str.split(" at ", n=1).str[1].map(named).fillna(rows["id"]))


def _items(dataset: Dataset, judged: Judged, conflicts: pd.DataFrame, order: Sequence[Asked]) -> list[ReviewItem]:
    """What the page shows. The raw file of an image that is left out may be gone; it is shown without a picture."""
    folders = {each["name"]: SourceDeclaration.from_json(each).folder for each in dataset.metadata["sources"]}
    row_of = {image: row for row, image in enumerate(judged.samples["id"])}
    left_out = dict(iter(conflicts.groupby("id")))

    def image(identity: str) -> ReviewImage:
        if identity in row_of:
            sample = judged.samples.iloc[row_of[identity]]
            label, picture = sample["cell_type"], small_picture(dataset.read_encoded(sample), SIDE)
        else:
            rows = left_out[identity]
            sample, labels = rows.iloc[0], set(rows["cell_type"])
            label = labels.pop() if len(labels) == 1 else ""
            picture = small_picture(on_disk(folders[sample["source"]], sample["path"]), SIDE)
        return ReviewImage(identity, sample["source"], sample["path"], label, picture[0] if picture else "")

    return [
        ReviewItem(
            image(asked.id),
            _WORDS[asked.why][0],
            judged.answer(row_of[asked.id]) if asked.id in row_of else "",
            image(asked.beside) if asked.beside else None,
        )
        for asked in track(order, len(order), "pictures", "image")
    ]


def _tell(order: Sequence[Asked], images: int) -> None:
    """Print how many images are on the page, and why."""
    counts = Counter(asked.why for asked in order[:images])
    listed = ", ".join(f"{counts[why]} {words}" for why, (_, words) in _WORDS.items() if counts[why])
    print(f"{min(images, len(order))} of {len(order)} images: {listed}")
    more = Counter(asked.why for asked in order[images:])["label"]
    if more:
        print(f"{more} more labels may be wrong: raise images={images}, or review the rest afterwards")
