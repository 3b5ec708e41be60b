"""One classifier on one data set, in this project's loop and in timm's: the contenders of the training benchmarks."""

import functools
import gc
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Stream, Topology
from launchers.console import read_config
from models.classifiers.build import build_classifier
from tests.benchmarks.own_training import LAPS, Laps, OnDevice, train_laps
from tests.benchmarks.peaks import utilization
from tests.benchmarks.timm_training import TimmLoop, write_folder
from trainer.learners.topology import resolve_precision
from trainer.runs.network_size import multiply_accumulates
from trainer.tasks.classification.config import ClassifierRunConfig

_CHOICES = ("channels_last", "compile", "checkpoint_activations")


@dataclass(frozen=True)
class Classifier:
    """What is trained. settings: more of ours, as train_classifier.py takes them."""

    model: str
    image_size: int
    batch: int
    precision: str
    settings: tuple[str, ...] = ()


class ClassifierSpeed:
    """Images per second of a classifier's training, by either loop."""

    def __init__(self, classifier: Classifier, dataset: Dataset, topology: Topology, scratch: Path) -> None:
        self.classifier, self._dataset, self._topology, self._scratch = classifier, dataset, topology, scratch
        self.plain = self.config("plain")
        self.precision = resolve_precision(self.plain.train.precision, topology.device)
        self._number = 0

    def config(self, variant: str, augment: str = "flip", *more: str) -> ClassifierRunConfig:
        """Ours with some of _CHOICES, joined by +; `plain` has the defaults."""
        classifier = self.classifier
        overrides = [
            f"model={classifier.model}",
            f"data/augment={augment}",
            f"data.image_size={classifier.image_size}",
            f"train.global_batch={classifier.batch}",
            f"train.precision={classifier.precision}",
            *classifier.settings,
            *more,
        ]
        for choice in variant.split("+") if variant != "plain" else []:
            if choice not in _CHOICES:
                raise UserError(f"variants={choice}: use plain, {', '.join(_CHOICES)}, or some of them joined by +")
            overrides.append(f"train.{choice}=true")
        return read_config(ClassifierRunConfig, "train_classifier", overrides)

    def lap_steps(self, seconds: float) -> int:
        """Steps of a lap, so that all laps take about so long; by a short trial."""
        trial = self.ours(OnDevice, self.plain, 1).images_per_second
        return max(1, math.ceil(seconds * trial / self.classifier.batch / LAPS))

    def ours(self, kind: type[Stream], config: ClassifierRunConfig, lap_steps: int) -> Laps:
        """From the stream, or from OnDevice batches."""
        self._number += 1
        run = self._scratch / "runs" / f"{self.classifier.model}-{self._number}"
        try:
            return train_laps(kind, self._dataset, config, self._topology, lap_steps, run)
        finally:
            self._forget()

    def timm(self, channels_last: bool, lap_steps: int, *, compiled: bool = False, batch: int | None = None) -> Laps:
        """By timm's loop, from a folder of the same files, by a loader process for each core. batch: None: ours."""
        config = self.plain if batch is None else self.config("plain", "flip", f"train.global_batch={batch}")
        workers = len(os.sched_getaffinity(0))
        # As many more as are decoded ahead: its workers are as busy at the end as at the beginning.
        batches = (1 + LAPS) * lap_steps + 2 * workers
        folder = write_folder(self._dataset, self._scratch / "folder", batches * config.train.global_batch)
        loop = TimmLoop(config, folder, self._topology.device, self.precision, workers, channels_last, compiled)
        try:
            return loop.laps(self.network(), lap_steps)
        finally:
            self._forget()

    def network(self) -> torch.nn.Module:
        types = self._dataset.samples(columns=["cell_type"])["cell_type"].nunique()
        torch.manual_seed(0)
        return build_classifier(self.plain.model, types, self.classifier.image_size)

    def utilization(self, speed: float) -> dict[str, Any]:
        """The share of the device's peak at so many images per second."""
        return utilization(self._multiply_accumulates, speed, self._topology.device, self.precision)

    @functools.cached_property
    def _multiply_accumulates(self) -> int:
        """Of the forward pass of one image."""
        return multiply_accumulates(self.network(), self.classifier.image_size)

    def _forget(self) -> None:
        gc.collect()
        if self._topology.device.type == "cuda":
            torch.cuda.empty_cache()
