"""Everything that a run of a classifier follows from."""

from dataclasses import dataclass, field

from data_pipeline.dataset_config import DatasetConfig, SeenChoice
from data_pipeline.stream.config import StreamConfig
from models.classifiers.config import ClassifierConfig
from trainer.learners.choices import NetworkChoices
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.loop.fit_config import FitConfig
from trainer.metrics.measures import epoch_measures
from trainer.runs.arguments import nearest


@dataclass(frozen=True)
class ClassifierFitConfig(FitConfig):
    """How long and how to train a classifier.

    select_by: the validation score that chooses the best checkpoint (see trainer.metrics.measures). patience: epochs
    without a better one after which training stops; null never stops early. synchronize_batch_norm: one set of batch
    statistics over all GPUs. checkpoint_activations, compile, channels_last: see NetworkChoices.
    """

    label_smoothing: float = 0.1
    select_by: str = "balanced_accuracy"
    patience: int | None = None
    synchronize_batch_norm: bool = False
    checkpoint_activations: bool = False
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select_by not in epoch_measures():
            raise ValueError(
                f"train.select_by={self.select_by} is none of {', '.join(epoch_measures())}"
                f"{nearest(self.select_by, epoch_measures())}"
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"train.patience={self.patience}: must be at least 1, or null")

    @property
    def network_choices(self) -> NetworkChoices:
        return NetworkChoices(self.checkpoint_activations, self.compile, self.channels_last)


@dataclass(frozen=True)
class ClassifierRunConfig(DatasetConfig):
    """Everything a classifier's run follows from.

    shards, cache, cache_size: see DatasetConfig. run: where the run is written. seen_images: what becomes of validation
    and test images that the initial weights, or a generator or normaliser, learned from: the training is refused, or
    the scores leave them out.
    """

    run: str | None = None
    seen_images: SeenChoice = "refuse"
    seed: int = 0
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    data: StreamConfig = field(default_factory=StreamConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: ClassifierFitConfig = field(default_factory=ClassifierFitConfig)
