"""Settings of a classifier's run."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from data_pipeline.dataset_config import AFFECTS_NOTHING, AFFECTS_RESULT, SeenChoice
from models.classifiers.config import ClassifierConfig
from trainer.learners.choices import NetworkChoices
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.loop.fit_config import SelectedFitConfig
from trainer.metrics.measures import epoch_measures
from trainer.runs.arguments import nearest
from trainer.runs.config import RunConfig
from trainer.runs.registry import check_algorithm


@dataclass(frozen=True)
class SyntheticConfig:
    """How a classifier is shown the generated images among its training images. By default like the real ones."""

    # Share of the training's steps in which they are shown; after these real images alone.
    until: float = 1.0
    # Real images alone are drawn, by data.sampling, and one is replaced by a generated one of its type and domain with
    # this probability. null: generated images are drawn like the others.
    replace: float | None = None
    # Of a generated image's loss; a real image's has 1.
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("until", "replace", "weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"train.synthetic.{name}={value}: must be at least 0 and at most 1")


@dataclass(frozen=True)
class ClassifierFitConfig(SelectedFitConfig, NetworkChoices):
    """How long and how a classifier is trained; see SelectedFitConfig and NetworkChoices too."""

    algorithm: str = "cross_entropy"
    label_smoothing: float = 0.1
    # alpha of mixup's and cutmix's Beta(alpha, alpha), see training/mixing.py; 0: off. Both: half of the images each.
    mixup: float = 0.0
    cutmix: float = 0.0
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    # Epochs at the start in which only the last layer learns. Batch norms' running statistics change all the same.
    frozen_epochs: int = 0
    # The validation score that chooses the best checkpoint.
    select_by: str = "balanced_accuracy"
    # A later epoch is chosen even if its score is less than this below the best: 0.01, say, where validation images are
    # so few that a per cent is chance and the learning rate falls to the end.
    select_within: float = field(default=0.0, metadata=AFFECTS_RESULT)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_algorithm("classification", self.algorithm, "train.algorithm")
        if self.select_by not in epoch_measures():
            raise ValueError(
                f"train.select_by={self.select_by} is none of {', '.join(epoch_measures())}"
                f"{nearest(self.select_by, epoch_measures())}"
            )
        for name in ("mixup", "cutmix", "select_within"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be above 0, or 0 for none")
        if not 0 <= self.frozen_epochs < self.epochs:
            raise ValueError(f"train.frozen_epochs={self.frozen_epochs}: must be at least 0 and below train.epochs")

    @property
    def network_choices(self) -> NetworkChoices:
        return NetworkChoices(self.checkpoint_activations, self.compile, self.channels_last)


@dataclass(frozen=True)
class ClassifierRunConfig(RunConfig):
    """Settings of a classifier's run."""

    kind: ClassVar[str] = "classification"
    # What becomes of validation and test images that the initial weights, a generator or a normaliser learned from:
    # the training is refused, or the scores leave them out.
    seen_images: SeenChoice = field(default="refuse", metadata=AFFECTS_NOTHING)
    # Share of the side that the median nucleus of each domain takes after cropping, 0.43 say: images of all
    # laboratories then have one scale, those that are predicted too (see inference/scale.py). A domain that data.crop
    # names has that crop. null: no others are cropped.
    nucleus_share: float | None = None
    # split_first: real images are split before anything is made of them. balance_first: the thesis's protocol, a
    # control whose result is not a score (see training/protocol.py).
    protocol: Literal["split_first", "balance_first"] = "split_first"
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: ClassifierFitConfig = field(default_factory=ClassifierFitConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nucleus_share is not None and not 0 < self.nucleus_share < 1:
            raise ValueError(f"nucleus_share={self.nucleus_share}: must be above 0 and below 1, or null")
        if self.model.norm == "frozen" and self.model.weights is None:
            raise ValueError("model.norm=frozen keeps the running statistics of initial weights: give model.weights")
        apart = self.model.norm == "auxiliary"
        if apart and (self.train.mixup or self.train.cutmix):
            raise ValueError("model.norm=auxiliary: an image mixed of a real and a generated one is neither: no mixup")
        if apart and self.train.compile:
            raise ValueError("model.norm=auxiliary: leave train.compile out: each count of generated images recompiles")
        if self.model.architecture in ("frozen", "naive_bayes") and (
            apart or self.train.synthetic != SyntheticConfig()
        ):
            raise ValueError(
                f"model={self.model.name} is fitted at once: model.norm=auxiliary and train.synthetic are of trainings "
                "in steps"
            )
