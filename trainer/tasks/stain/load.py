"""What a run between two stains has learned."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data_pipeline.errors import UserError
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.runs.record import RunRecord
from trainer.runs.registry import algorithm_class
from trainer.runs.run_directory import CONFIG_FILE
from trainer.tasks.stain.config import StainRunConfig


@dataclass(frozen=True)
class TrainedStainModel:
    """Networks of a run's newest checkpoint, on the CPU in evaluation mode.

    to_a, to_b: give an image the stain of domain a or b: float [n, 3, S, S] in [-1, 1] to the same.
    """

    generators: nn.Module  # the algorithm's module, of which to_a and to_b are parts
    to_a: nn.Module
    to_b: nn.Module
    config: StainRunConfig
    a: str
    b: str
    cell_types: tuple[str, ...]  # those that the run learned from
    dataset_hash: str
    checkpoint: Checkpoint


def load_stain_model(run: Path) -> TrainedStainModel:
    """The newest checkpoint of a run. UserError for a folder without one, or another kind of run."""
    record = RunRecord.read(run, "stain")
    config = record.config
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    if checkpoint is None:
        raise UserError(f"{run}: no checkpoint yet: let train_stain_gan.py go on first")
    state = checkpoint.load()["learners"]["generators"]
    algorithm = algorithm_class("stain", config.model.algorithm)
    generators = algorithm.build_generators(config.model, config.data.image_size)
    checkpoint.fill(generators, state["average"] or state["module"], run / CONFIG_FILE)
    to_a, to_b = algorithm.into_domains(generators.eval())
    return TrainedStainModel(
        generators,
        to_a,
        to_b,
        config,
        str(config.a),
        str(config.b),
        record.cell_types,
        record.dataset_hash,
        checkpoint,
    )
