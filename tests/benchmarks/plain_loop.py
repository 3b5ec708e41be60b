"""The rival: a timm network in a plain PyTorch loop, as a researcher would write it in an afternoon.

All images decoded and resized once into memory, flips and quarter turns, AdamW with a one-cycle
schedule, label smoothing; the weights of the epoch that validates best are scored.
"""

import copy
import io
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from torch.nn import functional

from data_pipeline.catalog import Dataset


@dataclass(frozen=True)
class PlainImages:
    """uint8 [n, 3, size, size], labels int64 [n] and the samples' groups."""

    images: torch.Tensor
    labels: torch.Tensor
    groups: list[str]


def load_images(dataset: Dataset, samples: pd.DataFrame, cell_types: list[str], size: int) -> PlainImages:
    """Decode and resize (antialiased) into memory."""
    pixels = np.empty((len(samples), 3, size, size), np.uint8)
    for number, row in enumerate(samples.itertuples()):
        image = Image.open(io.BytesIO(dataset.read_encoded(row))).convert("RGB")
        resized = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels[number] = np.asarray(resized).transpose(2, 0, 1)
    labels = torch.tensor([cell_types.index(name) for name in samples["cell_type"]])
    return PlainImages(torch.from_numpy(pixels), labels, samples["group"].tolist())


def train(
    name: str, training: PlainImages, validation: PlainImages, *, types: int, epochs: int, batch: int, seed: int
) -> Any:
    """Train for `epochs` passes; returns the network that validated best, and what it took."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=types)
    steps = len(training.labels) // batch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=epochs * steps)
    best, best_accuracy = copy.deepcopy(model.state_dict()), -1.0
    started, started_cpu = time.perf_counter(), time.process_time()
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(training.labels))
        for step in range(steps):
            chosen = order[step * batch : step * batch + batch]
            images = _augmented(training.images[chosen])
            loss = functional.cross_entropy(model(images), training.labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = (probabilities(model, validation).argmax(1) == validation.labels.numpy()).mean()
        print(f"{name} seed {seed}: epoch {epoch + 1}/{epochs}, validation accuracy {accuracy:.1%}", flush=True)
        if accuracy >= best_accuracy:
            best, best_accuracy = copy.deepcopy(model.state_dict()), accuracy
    model.load_state_dict(best)
    seconds = time.perf_counter() - started
    facts = {
        "validation_accuracy": float(best_accuracy),
        "images_shown": epochs * steps * batch,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - started_cpu,
    }
    return model, facts


@torch.no_grad()
def probabilities(model: torch.nn.Module, data: PlainImages) -> np.ndarray:
    """float32 [n, types]."""
    model.eval()
    parts = [model(_normalised(batch)).softmax(dim=1) for batch in data.images.split(128)]
    return torch.cat(parts).numpy()


def _augmented(images: torch.Tensor) -> torch.Tensor:
    turned = [torch.rot90(image, int(torch.randint(4, ())), (1, 2)) for image in images]
    flipped = [image.flip(2) if torch.rand(()) < 0.5 else image for image in turned]
    return _normalised(torch.stack(flipped))


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1
