"""Size of a run's classifier, found without its checkpoint."""

import dataclasses
import functools
from pathlib import Path

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from trainer.runs.configuration import typed
from trainer.runs.network_size import NetworkSize, multiply_accumulates
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.tasks.classification.config import ClassifierRunConfig


def network_size(run: Path) -> NetworkSize:
    """Of the network that the run's configuration describes. UserError if its config.yaml cannot be read."""
    content = read_run_config(run)
    names = [field.name for field in dataclasses.fields(ClassifierRunConfig)]
    known = {name: content[name] for name in names if name in content}
    config = typed(ClassifierRunConfig, known, str(run / CONFIG_FILE))
    model = dataclasses.replace(config.model, weights=None)
    return _size_of(model, len(content["cell_types"]), config.data.image_size)


@functools.cache  # trials of a sweep are alike
def _size_of(model: ClassifierConfig, number_of_types: int, image_size: int) -> NetworkSize:
    network = build_classifier(model, number_of_types, image_size)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return NetworkSize(parameters, multiply_accumulates(network, image_size))
