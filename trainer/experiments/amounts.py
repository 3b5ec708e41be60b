"""How many generated images a type gets: as many as validation images ask for, none included.

A linear head on the features of a network that is not trained stands for the classifier: it is fitted to the real
training images, every type weighing the same, and again with more and more generated images of one type. An amount is
taken if the log loss on validation images falls by more than its standard error against the smaller amount.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional

from data_pipeline.banks.asked import Asked, Tried, Verdict
from data_pipeline.banks.balance import UsedBank, held_images, open_banks, training_counts
from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages
from data_pipeline.stream.stream import Topology
from trainer.metrics.feature_space import ClassifierFeatures
from trainer.metrics.generation import extract_features
from trainer.runs.provenance import learned_by_run
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.training.heads import Features, Labels, balanced_weights, choose_head, fit_linear
from trainer.tasks.generation.evaluation import check_classifier
from trainer.tasks.generation.images import ImageReader, to_intensity
from trainer.tasks.generation.scoring import as_judge

# Amounts that are tried, in real images of the type; filling up to the type with the most images is tried, too.
_SHARES = (0.5, 1.0)
_BATCH = 64


def ask_validation(config: BalanceConfig, topology: Topology) -> Verdict:
    """What each type of the banks is given under per_type=auto.

    UserError for a classifier that learned from generated images or saw cells at another scale than the banks, and for
    banks whose generators read real images differently.
    """
    parent, run = config.open_dataset(), Path(str(config.classifier))
    banks = open_banks(config, parent)
    judge = as_judge(load_classifier(run), topology.device)
    readers = {bank.name: ImageReader(bank.images, parent, topology) for bank in banks}
    for reader in readers.values():
        check_classifier(judge, reader)
    first = readers[banks[0].name]
    read_as = {(str(each.config.domains), str(each.config.crop)) for each in readers.values()}
    if len(read_as) > 1:
        raise UserError("per_type=auto: the banks' generators read other domains or scales: balance with each alone")
    real = RealImages.read(first, judge.features)
    counts = training_counts(parent, config.domains)
    fill = max(sum(count.values()) for count in counts.values())
    answers = []
    for number, cell_type in enumerate(real.cell_types):
        held = held_images(banks, cell_type, config, counts[cell_type]["real"])
        if not held:
            continue
        there = sum(counts[cell_type].values())
        tried = {round(share * counts[cell_type]["real"]) for share in _SHARES} | {fill - there}
        amounts = sorted({min(amount, len(held)) for amount in tried if amount > 0})
        generated = _generated(held[: max(amounts, default=0)], readers, judge.features)
        answers.append(real.ask(number, generated, amounts))
    learned = LearnedImages.of(parent, {"trained": [], "chosen": real.validation_ids})
    judged = learned_by_run(run).through(f"{run} (classifier= of per_type=auto)")
    return Verdict(tuple(answers), LearnedImages.joined([learned.through("per_type=auto"), judged]))


class RealImages:
    """Features of the real training and validation images of a data set."""

    def __init__(
        self,
        cell_types: Sequence[str],
        training: tuple[Features, Labels],
        validation: tuple[Features, Labels],
        groups: NDArray[np.int64],
        validation_ids: Sequence[str],
    ) -> None:
        """groups: number of each validation image's patient or slide."""
        self.cell_types, self.validation_ids = cell_types, validation_ids
        self._training, self._validation, self._groups = training, validation, groups
        types = len(cell_types)
        self._weights = balanced_weights(validation[1], types)
        own = balanced_weights(training[1], types)
        control = choose_head("linear", *training, types, validation=validation, weights=own)
        self._penalty = control.setting
        self._without = self._losses(control.head)

    @classmethod
    def read(cls, reader: ImageReader, space: ClassifierFeatures) -> "RealImages":
        """Compute the features of all real training and validation images. UserError without a validation image."""
        training, held_out = (_features_of_split(reader, space, split) for split in ("train", "validation"))
        types = list(training)
        held_out = {name: each for name, each in held_out.items() if name in training}
        if not held_out:
            raise UserError(
                f"{reader.dataset.root}: no validation image to ask how many generated images help: give per_type= a "
                "number"
            )
        rows = pd.concat([some for _, some in held_out.values()])
        groups = np.unique(rows["group"], return_inverse=True)[1]
        return cls(types, _joined(training, types), _joined(held_out, types), groups, rows["id"].tolist())

    def ask(self, number: int, generated: Features, amounts: Sequence[int]) -> Asked:
        """The amount of generated images of a type that is asked for. generated: features of the most, in order."""
        features, labels = self._training
        losses, right = self._without
        tried = [Tried(0, 0.0, 0.0, self._sensitivity(right, number))]
        taken = 0
        for amount in amounts:
            inputs = np.concatenate([features, generated[:amount]])
            truth = np.concatenate([labels, np.full(amount, number)])
            types = len(self.cell_types)
            head = fit_linear(inputs, truth, types, self._penalty, balanced_weights(truth, types))
            with_them, right = self._losses(head)
            gain, error = self._gain(losses, with_them)
            tried.append(Tried(amount, *self._gain(self._without[0], with_them), self._sensitivity(right, number)))
            if gain > error:
                losses, taken = with_them, amount
        name = self.cell_types[number]
        return Asked(name, int((labels == number).sum()), tuple(tried), taken)

    @torch.no_grad()
    def _losses(self, head: torch.nn.Module) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Log loss of each validation image, every type weighing the same, and whether it is answered rightly."""
        features, labels = self._validation
        logits, truth = head(torch.from_numpy(features)), torch.from_numpy(labels)
        losses = functional.cross_entropy(logits, truth, reduction="none").double().numpy()
        return losses * self._weights.astype(np.float64), (logits.argmax(dim=1) == truth).numpy()

    def _gain(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
        """Mean fall of the log loss, and its standard error over groups."""
        falls = np.bincount(self._groups, before - after)
        error = np.sqrt(len(falls) * falls.var(ddof=1)) / len(before) if len(falls) > 1 else np.inf
        return float(falls.sum() / len(before)), float(error)

    def _sensitivity(self, right: NDArray[np.bool_], number: int) -> float | None:
        of_type = self._validation[1] == number
        return float(right[of_type].mean()) if of_type.any() else None


def _features_of_split(
    reader: ImageReader, space: ClassifierFeatures, split: str
) -> dict[str, tuple[Features, pd.DataFrame]]:
    """Features and rows ("id", "group") of the real images of each type."""
    found = {}
    for name in CELL_TYPES:
        rows = reader.real_samples(split, name)
        if len(rows):
            found[name] = _features(space, reader.read_real(rows, space.image_size)), rows
    return found


def _joined(of_types: Mapping[str, tuple[Features, pd.DataFrame]], types: list[str]) -> tuple[Features, Labels]:
    """Features and labels, indices into `types`, of all images."""
    labels = [np.full(len(features), types.index(name), np.int64) for name, (features, _) in of_types.items()]
    return np.concatenate([features for features, _ in of_types.values()]), np.concatenate(labels)


def _generated(
    images: Sequence[tuple[UsedBank, int]], readers: Mapping[str, ImageReader], space: ClassifierFeatures
) -> Features:
    """Features of generated images as the data set would store them, in their order."""
    rows: dict[str, list[int]] = {}
    for bank, row in images:
        rows.setdefault(bank.name, []).append(row)
    found = {}
    for name, of_bank in rows.items():
        pixels = readers[name].read_generated(np.array(of_bank))
        found[name] = iter(_features(space, readers[name].store_and_read(pixels, space.image_size)))
    return np.array([next(found[bank.name]) for bank, _ in images])


def _features(space: ClassifierFeatures, images: torch.Tensor) -> Features:
    return extract_features(space, map(to_intensity, images.split(_BATCH))).features.astype(np.float32)
