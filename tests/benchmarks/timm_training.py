"""timm's own training loop (train.py of timm 1.0) from timm's own parts, with this project's network and images."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader  # type: ignore[attr-defined]
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import nn

from data_pipeline.catalog import Dataset
from tests.benchmarks.own_training import LAPS, Laps
from tests.benchmarks.timing import cpu_seconds
from trainer.learners.choices import Precision
from trainer.tasks.classification.config import ClassifierRunConfig


@dataclass(frozen=True)
class TimmLoop:
    """What a run of timm's loop is made of.

    images: a folder per class, as timm reads it. workers: loader processes. channels_last: timm's --channels-last.
    compiled: timm's --torchcompile.
    """

    config: ClassifierRunConfig
    images: Path
    device: torch.device
    precision: Precision
    workers: int
    channels_last: bool
    compiled: bool = False

    def laps(self, network: nn.Module, lap_steps: int) -> Laps:
        """Some laps, after one that is left out; as many steps as our own loop's."""
        train = self.config.train
        step = _Step(network.to(self.device), self)
        batches = self._batches()
        try:
            for images, labels in itertools.islice(batches, lap_steps):
                step(images, labels)
            self._wait()
            begun, cpu = time.perf_counter(), cpu_seconds()
            for images, labels in itertools.islice(batches, LAPS * lap_steps):
                step(images, labels)
            self._wait()
            count = LAPS * lap_steps * train.global_batch
            return Laps(count / (time.perf_counter() - begun), 1000 * (cpu_seconds() - cpu) / count)
        finally:
            del batches  # ends the worker processes

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The same work on the same stored files: decode, resize the whole image, mirror half of them, normalise."""
        size = self.config.data.image_size
        loader: Any = create_loader(
            create_dataset("", root=str(self.images)),
            input_size=(3, size, size),
            batch_size=self.config.train.global_batch,
            is_training=True,
            scale=(1.0, 1.0),
            ratio=(1.0, 1.0),
            hflip=0.5,
            color_jitter=0.0,
            interpolation="bilinear",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            device=self.device,
            use_prefetcher=True,
        )
        while True:
            yield from loader

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class _Step:
    """One step as timm's train_one_epoch does it."""

    def __init__(self, network: nn.Module, loop: TimmLoop) -> None:
        optimizer, train = loop.config.optimizer, loop.config.train
        self._loop, self._clip = loop, optimizer.clip_norm
        if loop.channels_last:
            network = network.to(memory_format=torch.channels_last)
        self._network: Any = network.train()
        if loop.compiled:
            self._network = torch.compile(network)
        fused = {"fused": True} if loop.device.type == "cuda" else {}
        self._optimizer = create_optimizer_v2(
            network, opt=optimizer.name, lr=optimizer.learning_rate, weight_decay=optimizer.weight_decay, **fused
        )
        self._loss = LabelSmoothingCrossEntropy(train.label_smoothing)
        self._scaler = NativeScaler(loop.device.type) if loop.precision == "fp16" else None
        self._average = ModelEmaV3(network, decay=optimizer.average_decay) if optimizer.average_decay > 0 else None
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(loop.precision)
        self._autocast: Any = nullcontext() if half is None else torch.autocast(loop.device.type, dtype=half)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        if self._loop.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self._autocast:
            loss = self._loss(self._network(images), labels)
        parameters = self._network.parameters()
        if self._scaler is not None:
            self._scaler(loss, self._optimizer, clip_grad=self._clip, parameters=parameters)
        else:
            loss.backward()
            if self._clip is not None:
                dispatch_clip_grad(parameters, value=self._clip)
            self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average is not None:
            self._average.update(self._network)


def write_folder(dataset: Dataset, folder: Path, count: int) -> Path:
    """The data set's files in a folder per class, each linked so often that an epoch has `count` images at least.

    timm starts its loader anew for each epoch; with few images that would be most of what is measured.
    """
    samples = dataset.samples()
    extension = {"jpeg": "jpg", "png": "png"}[dataset.metadata["settings"]["codec"]]
    for row in samples.itertuples():
        place = folder / str(row.cell_type)
        place.mkdir(parents=True, exist_ok=True)
        first = place / f"{row.id}.{extension}"
        if not first.exists():
            first.write_bytes(dataset.read_encoded(row))
        for number in range(1, -(-count // len(samples))):
            link = place / f"{row.id}-{number}.{extension}"
            if not link.exists():
                os.link(first, link)
    return folder
