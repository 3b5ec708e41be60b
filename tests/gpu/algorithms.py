"""Every algorithm with tiny networks, and batches of noise for it."""

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import MicroBatch, Topology
from launchers.console import read_config
from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig
from models.stain.config import CriticConfig as StainCriticConfig
from models.stain.config import GeneratorConfig as StainGeneratorConfig
from trainer.learners.choices import Precision
from trainer.learners.learner import Setting
from trainer.loop.algorithm import Algorithm
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.fit_config import FitConfig
from trainer.loop.progress import Progress, checkpoint_state
from trainer.runs.record import RunRecord
from trainer.runs.registry import algorithm_names, task
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional.config import ConditionalModelConfig, ConditionalRunConfig
from trainer.tasks.stain.config import StainModelConfig, StainRunConfig

SIZE, TYPES, BATCH, STEPS = 32, 3, 4, 8
_DATA, _LENGTH = StreamConfig(image_size=SIZE), FitConfig(global_batch=BATCH)


def _setting(precision: Precision, topology: Topology) -> Setting:
    return Setting(precision, STEPS, global_batch=BATCH, topology=topology)


def _classifier(precision: Precision, topology: Topology) -> Algorithm:
    settings = ["model=senet_tiny_ge", f"data.image_size={SIZE}", f"train.global_batch={BATCH}"]
    config = read_config(ClassifierRunConfig, "train_classifier", settings)
    torch.manual_seed(0)
    return task("classification").build(config, TYPES, _setting(precision, topology))


def _conditional(algorithm: str, precision: Precision, topology: Topology) -> Algorithm:
    model = ConditionalModelConfig(
        algorithm=algorithm,
        generator=GeneratorConfig(width=4, latent_size=6, blocks=[1, 1, 1]),
        critic=CriticConfig(width=4, hidden=8, blocks=[1, 1, 1]),
        classifier=ClassifierConfig(width=4, hidden=8, blocks=[1, 1, 1]),
        critic_steps=1,
    )
    config = ConditionalRunConfig(model=model, data=_DATA, train=_LENGTH)
    torch.manual_seed(0)
    return task("conditional").build(config, TYPES, _setting(precision, topology))


def _stain_config(algorithm: str, options: dict[str, Any]) -> StainRunConfig:
    model = StainModelConfig(
        algorithm=algorithm,
        options=options,
        generator=StainGeneratorConfig(width=4, depth=3),
        critic=StainCriticConfig(width=4, layers=2),
    )
    return StainRunConfig(a="a", b="b", model=model, data=_DATA, train=_LENGTH)


def _stain(algorithm: str, precision: Precision, topology: Topology, **options: Any) -> Algorithm:
    torch.manual_seed(0)
    return task("stain").build(_stain_config(algorithm, options), TYPES, _setting(precision, topology))


def _student(precision: Precision, topology: Topology) -> Algorithm:
    """Taught by a run that has learned nothing."""
    teacher = _stain("w_cyclegan_gp", precision, topology)
    learners = {name: learner.state_dict() for name, learner in teacher.learners.items()}
    record = RunRecord(
        config=_stain_config("w_cyclegan_gp", {}),
        kind="stain",
        cell_types=("basophil", "eosinophil", "lymphocyte"),
        dataset_hash="",
        storage=ShardSettings(),
        domain="",
        normalizer=None,
    )
    with tempfile.TemporaryDirectory() as run:
        record.write(Path(run))
        state = checkpoint_state(learners, teacher.state_dict(), Progress(), {})
        CheckpointStore(Path(run) / "checkpoints").save(0, state)
        return _stain("stain_student", precision, topology, teacher=run)


# Those whose learners are the trainer's own; the few-shot algorithms have others.
BUILD: dict[str, Callable[[Precision, Topology], Algorithm]] = {
    "classifier": _classifier,
    **{name: functools.partial(_conditional, name) for name in algorithm_names("conditional")},
    **{name: functools.partial(_stain, name) for name in algorithm_names("stain") if name != "stain_student"},
    "stain_student": _student,
}


def noise(device: torch.device) -> Iterator[MicroBatch]:
    """Batches of random images, endless."""
    number = 0
    while True:
        generator = torch.Generator().manual_seed(number)
        images = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator) * 2 - 1
        labels = torch.arange(BATCH) % TYPES
        positions = number * BATCH + np.arange(BATCH)
        yield MicroBatch(images.to(device), labels.to(device), np.arange(BATCH), positions, number, 1)
        number += 1


@dataclass
class Running:
    """An algorithm with its streams."""

    algorithm: Algorithm
    streams: Mapping[str, Iterator[list[MicroBatch]]]

    def step(self) -> dict[str, float]:
        """One step; all its numbers."""
        result = self.algorithm.step(self.streams, detailed=False)
        return {name: value.item() for name, value in (*result.sums.items(), *result.norms.items())}


def start(name: str, precision: Precision, topology: Topology) -> Running:
    algorithm = BUILD[name](precision, topology)
    return Running(algorithm, {stream: ([batch] for batch in noise(topology.device)) for stream in algorithm.takes})


def weights_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def overflow(module: nn.Module) -> Any:
    """From now on gradients of this network overflow; `remove()` of what comes back ends it."""
    first = next(parameter for parameter in module.parameters() if parameter.requires_grad)
    return first.register_hook(lambda gradient: gradient + torch.inf)
