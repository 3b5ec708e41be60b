"""Trained generators of cells, whatever their task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from trainer.runs.run_directory import read_run_config
from trainer.tasks.conditional import load as conditional_run
from trainer.tasks.few_shot import load as few_shot_run
from trainer.tasks.generation.synthesis import ImageSampler


def load_sampler(run: Path) -> ImageSampler:
    """A run's trained generator, on the CPU. UserError for a folder that is no run of a generator of cells."""
    loaders: dict[Any, Callable[[Path], ImageSampler]] = {
        conditional_run.KIND: conditional_run.load_conditional_model,
        few_shot_run.KIND: few_shot_run.load_few_shot_model,
    }
    kind = read_run_config(run).get("kind")
    if kind not in loaders:
        raise UserError(
            f"{run}: not a run that makes cells: give one of train_conditional_gan.py or train_few_shot_gan.py"
        )
    return loaders[kind](run)
