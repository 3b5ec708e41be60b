"""What a task is to the training script."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages
from data_pipeline.stream.stream import Stream, Topology
from trainer.learners.choices import Precision
from trainer.learners.learner import Setting
from trainer.learners.topology import resolve_precision
from trainer.loop.algorithm import Algorithm
from trainer.loop.fit import AfterEpoch
from trainer.loop.forecast import Expectation
from trainer.loop.selection import Selection
from trainer.runs import registry
from trainer.runs.config import RunConfig
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.network_size import NetworkSize, parameters_of
from trainer.runs.provenance import learned_at_start

Config = TypeVar("Config", bound=RunConfig)


class Session(ABC, Generic[Config]):
    """One training on its data set."""

    config: Config  # with everything named that the data set decides
    dataset: Dataset
    topology: Topology
    cell_types: tuple[str, ...]
    streams: Mapping[str, Stream]
    epoch_steps: int
    domain: str = ""  # stain of generated images
    normalizer: str | None = None  # file of the normaliser in the run, for raw images

    @abstractmethod
    def __init__(self, config: Config, dataset: Dataset, topology: Topology) -> None:
        """UserError where configuration and data set do not fit."""

    @functools.cached_property
    def selection(self) -> Selection | None:
        """How the best epoch is chosen; None: the last one is what a run has learned."""
        task = registry.task(self.config.kind)
        return None if task.keeps_last else task.selection(self.config, self.dataset)

    @functools.cached_property
    def learned(self) -> LearnedImages:
        """The images that the run is trained on or selected by; a resumed run reads the table saved at its start."""
        compute = functools.partial(registry.task(self.config.kind).learned, self.config, self.dataset, self.cell_types)
        return learned_at_start(Path(str(self.config.run)), self.dataset, compute)

    @property
    def precision(self) -> Precision:
        """The precision that the run computes in."""
        return resolve_precision(self.config.train.precision, self.topology.device)

    @property
    def facts(self) -> dict[str, str]:
        """Facts that a checkpoint depends on in addition to the settings."""
        types = ",".join(self.cell_types)
        return {"data set": self.dataset.content_hash, "cell types": types, "precision": self.precision}

    def begin(self) -> None:
        """Called on rank 0 before config.yaml is written: the run directory is this run's."""
        return

    @abstractmethod
    def build(self, setting: Setting, *, fresh: bool) -> Algorithm | None:
        """The algorithm with its networks; None if the model is not trained in steps (see `fit_at_once`).

        fresh: the run starts without a checkpoint, so that initial weights are needed.
        """

    def expectation(self) -> Expectation:
        """What is known of the training's duration before its first step; called after `build`."""
        return Expectation()

    def fit_at_once(self, fingerprint: Mapping[str, Any], after_epoch: AfterEpoch | None) -> None:
        """Train a model that is not trained in steps, such as naive Bayes."""
        return

    def score_epoch(self, step: int) -> dict[str, float]:
        """Validation scores at an epoch's end, equal on all ranks; sample sheets are drawn here."""
        return {}

    def finish(self) -> None:
        """What follows the training: final scores, reports."""


class Task(ABC, Generic[Config]):
    """What is learned, and by which algorithms. `TASK` in a task's task.py is one."""

    kind: ClassVar[str]  # folder of trainer/tasks
    launcher: ClassVar[str]
    config: ClassVar[type[Any]]
    session: ClassVar[type[Session[Any]]]
    makes_images: ClassVar[bool] = False  # what `load` gives is an ImageSampler
    whole_fields: ClassVar[bool] = False  # learns from fields, which are stored whole
    keeps_last: ClassVar[bool] = False  # a run has learned what it knows at its end, whatever its best epoch
    answers_test: ClassVar[bool] = False  # a finished run holds its answers to the test images, cell type by cell type

    def open(self, config: Config, dataset: Dataset, topology: Topology) -> Session[Config]:
        """A training on a data set. UserError where the two do not fit."""
        return self.session(config, dataset, topology)

    @abstractmethod
    def build(self, config: Config, types: int, setting: Setting) -> Algorithm:
        """The algorithm for so many cell types, fresh, without a data set. UserError for one without steps."""

    def count_epoch_steps(self, config: Config, dataset: Dataset, topology: Topology) -> int:
        """Steps of one pass over the data. UserError where the two do not fit."""
        return self.open(config, dataset, topology).epoch_steps

    def selection(self, config: Config, dataset: Dataset) -> Selection | None:
        """The epoch score by which a run's best epoch is chosen and trials of a sweep are compared; None: no choice."""
        return None

    def trains_in_steps(self, config: Config) -> bool:
        """False where `Session.build` gives None."""
        return True

    def check_ranks(self, config: Config, ranks: int) -> None:
        """UserError where so many ranks cannot share a step."""
        return

    def planned_types(self, config: Config) -> int:
        """Number of cell types that a run is planned with, whatever its data set."""
        return len(config.data.cell_types or CELL_TYPES)

    def planned_episode(self, config: Config) -> int | None:
        """Images that no micro-batch divides; None where micro-batches may be of any size."""
        return None

    @abstractmethod
    def learned(self, config: Config, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
        """Real images that a run is trained on, or that choose its checkpoint.

        Those of everything that it begins with count too: initial weights, the makers of its data set, its features.
        """

    @abstractmethod
    def load(self, run: Path) -> Any:
        """What a run has learned. UserError for an unfinished one."""

    def evaluate(self, run: Path, config: EvaluateConfig, topology: Topology) -> None:
        """Score a run; writes the record and the report. UserError for a task whose runs are not scored."""
        raise UserError(
            f"{run}: what a generator has learned is scored by its images: draw them with synthesize.py, then give "
            "bank=DIR"
        )

    def logs(self, run: Path) -> list[Path]:
        """Folders whose logs and checkpoints together are the training."""
        return [run]

    def network_size(self, run: Path) -> NetworkSize | None:
        """Size of what a run has learned; None before its first checkpoint."""
        networks = parameters_of(self.logs(run))
        return NetworkSize(sum(networks.values())) if networks else None

    def write_report(self, run: Path) -> Path:
        """Write run/report.html from what the run directory holds; returns it."""
        from trainer.runs.report import write_report  # here: the first step need not wait for it

        return write_report(run)
