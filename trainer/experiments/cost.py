"""What a trial cost: time, images per second, parameters, multiply-accumulates."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from trainer.experiments.results import Trial
from trainer.loop.log import read_records
from trainer.runs.configuration import typed
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.tasks.classification.config import ClassifierRunConfig

CONVENTION = (
    "Multiply-accumulates of one image at the run's size: half of the floating-point operations that torch counts in "
    "convolutions, matrix products and attention; norms, activations and pooling do not count."
)


def multiply_accumulates(network: nn.Module, image_size: int) -> int:
    """Of one image float32 [3, S, S] through a network on the CPU, in evaluation mode; see CONVENTION."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2


@functools.cache
def _network_size(model: ClassifierConfig, number_of_types: int, image_size: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a configuration's network."""
    network = build_classifier(model, number_of_types, image_size)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return parameters, multiply_accumulates(network, image_size)


def cost_of(trial: Trial) -> dict[str, Any]:
    """A finished trial's cost.

    "seconds": wall time of its training. "images_per_second": over all its epochs, scoring left out; None
    without a log. "epochs", "parameters", "multiply_accumulates", "image_size" (pixels).
    UserError where its config.yaml cannot be read.
    """
    content = read_run_config(trial.run)
    names = [field.name for field in dataclasses.fields(ClassifierRunConfig)]
    known = {name: content[name] for name in names if name in content}
    config = typed(ClassifierRunConfig, known, str(trial.run / CONFIG_FILE))
    model, image_size = dataclasses.replace(config.model, weights=None), config.data.image_size
    parameters, operations = _network_size(model, len(content["cell_types"]), image_size)
    return {
        "seconds": trial.seconds,
        "epochs": trial.epochs,
        "images_per_second": _images_per_second(trial),
        "image_size": image_size,
        "parameters": parameters,
        "multiply_accumulates": operations,
    }


def _images_per_second(trial: Trial) -> float | None:
    epochs = [record for record in read_records(trial.run) if record["kind"] == "epoch"]
    seconds = sum(record["seconds"] for record in epochs)
    return sum(record["seconds"] * record["images_per_second"] for record in epochs) / seconds if seconds else None


def mean_cost(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over an arm's trials of what differs between them; parameters and operations are those of the first."""
    mean = dict(costs[0])
    for name in ("seconds", "epochs", "images_per_second"):
        known = [cost[name] for cost in costs if cost[name] is not None]
        mean[name] = sum(known) / len(known) if known else None
    return mean
