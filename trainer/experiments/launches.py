"""The launchers that an experiment starts: their arguments checked and turned into stages before anything runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.errors import UserError
from data_pipeline.stream.config import default_order
from trainer.experiments.resources import Resources
from trainer.experiments.stages import Inputs, Stage
from trainer.runs import registry
from trainer.runs.arguments import later_wins
from trainer.runs.composition import read_config
from trainer.runs.config import RunConfig
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.detection.config import DetectorRunConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.generation.synthesis_config import SynthesizeConfig
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.normalization_config import NormalizeConfig

# Launcher -> its configuration.
LAUNCHER_CONFIGS: dict[str, type[Any]] = {
    "train_classifier": ClassifierRunConfig,
    "train_stain_gan": StainRunConfig,
    "normalize_stains": NormalizeConfig,
    "train_conditional_gan": ConditionalRunConfig,
    "train_few_shot_gan": FewShotRunConfig,
    "train_detector": DetectorRunConfig,
    "synthesize": SynthesizeConfig,
    "balance": BalanceConfig,
    "evaluate": EvaluateConfig,
}


@dataclass(frozen=True)
class StagePlanner:
    """Makes stages of one experiment."""

    where: Path  # file of the experiment, which UserErrors name
    resources: Resources  # of each stage
    in_store: bool  # the data set lies in an object store
    suffix: str = ""  # of the name of each stage

    def configure(self, what: str, launcher: str, arguments: Sequence[str]) -> Any:
        """A launcher's configuration. UserError, naming the file and `what`, for what the launcher would refuse."""
        try:
            config = _composed(launcher, tuple(arguments))
            if isinstance(config, RunConfig) and self.resources.workers > 1:
                registry.task(config.kind).check_ranks(config, self.resources.workers)
        except UserError as error:
            raise UserError(f"{self.where}: {what} ({launcher}.py): {error}") from error
        data = getattr(config, "data", None)
        if data is None or data.order is not None:
            return config
        # The order that data.order=null stands for decides a training's result.
        return dataclasses.replace(config, data=dataclasses.replace(data, order=default_order(data, self.in_store)))

    def stage(self, name: str, launcher: str, arguments: Sequence[str], inputs: Inputs, output: str | None) -> Stage:
        """A stage, known by its whole configuration. UserError as of `configure`."""
        name, arguments = f"{name}{self.suffix}", later_wins(arguments)
        settings = self.configure(name, launcher, arguments)
        return Stage(name, launcher, arguments, inputs, output, settings, one_process=launcher == "evaluate")

    def training(self, name: str, launcher: str, arguments: Sequence[str], parent: Stage | Any) -> Stage:
        """A training on a data set, whose images are decoded by the threads of one process."""
        threads = f"data.threads={self.resources.threads}"
        return self.stage(name, launcher, (threads, *arguments), {"shards": parent}, "run")


@functools.cache  # many stages are planned more than once, and Hydra takes its time
def _composed(launcher: str, arguments: tuple[str, ...]) -> Any:
    return read_config(LAUNCHER_CONFIGS[launcher], launcher, arguments)
