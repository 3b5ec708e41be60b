"""Everything that a run of stain normalisation follows from."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.dataset_config import DatasetConfig
from data_pipeline.stream.config import StreamConfig
from models.stain.config import CriticConfig, GeneratorConfig
from trainer.learners.choices import PenaltyMetric
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.loop.fit_config import FitConfig


def _adam() -> OptimizerConfig:
    """Adam as the thesis has it (section 3.4): constant for the first half, then linear to zero."""
    return OptimizerConfig(
        name="adam",
        learning_rate=1e-4,
        weight_decay=0.0,
        betas=[0.5, 0.9],
        schedule="linear",
        warmup=0.0,
        clip_norm=None,
    )


@dataclass(frozen=True)
class CycleWeights:
    """The weight of each term (eq. 21, 23, 29, 30). penalty and its metric are W-CycleGAN-GP's alone."""

    adversarial: float = 1.0
    cycle: float = 10.0
    identity: float = 5.0
    penalty: float = 10.0
    penalty_metric: PenaltyMetric = "root_mean_square"

    def __post_init__(self) -> None:
        for name in ("adversarial", "cycle", "identity", "penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.weights.{name}={getattr(self, name)}: must be at least 0")


@dataclass(frozen=True)
class StainModelConfig:
    """Which algorithm, between which networks.

    weights: of the terms of w_cyclegan_gp and cyclegan. critic_steps: critics' moves for each of the
    generators' in those two. pool_size: of cyclegan. l1_weight: of pix2pix. teacher: run directory that
    stain_student learns from.
    """

    algorithm: Literal["w_cyclegan_gp", "cyclegan", "pix2pix", "stain_student"] = "w_cyclegan_gp"
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    weights: CycleWeights = field(default_factory=CycleWeights)
    critic_steps: int = 1
    pool_size: int = 50
    l1_weight: float = 100.0
    teacher: str | None = None
    generator_optimizer: OptimizerConfig = field(default_factory=_adam)
    critic_optimizer: OptimizerConfig = field(default_factory=_adam)

    def __post_init__(self) -> None:
        if self.critic_steps < 1:
            raise ValueError(f"model.critic_steps={self.critic_steps}: must be at least 1")
        if self.pool_size < 0:
            raise ValueError(f"model.pool_size={self.pool_size}: must be at least 0")


@dataclass(frozen=True)
class StainRunConfig(DatasetConfig):
    """A run between two stains.

    shards, cache, cache_size: see DatasetConfig. run: where the run is written. a, b: the two domains, a the
    one whose stain the others are to take; null takes the data set's two, the one with more images as a.
    matching: `cell_type` shows both domains the same types in the same order, so that no type is rewarded
    for turning into another; `none` draws from each as it is, unlabelled images too.
    folds: domain -> folds to learn from, in place of the domain's training split (for cross-fits).
    samples_per_type: images of each type on a sample sheet, of which one is drawn at the end of each epoch.
    """

    run: str | None = None
    seed: int = 0
    a: str | None = None
    b: str | None = None
    matching: Literal["cell_type", "none"] = "cell_type"
    folds: dict[str, list[int]] = field(default_factory=dict)
    samples_per_type: int = 2
    model: StainModelConfig = field(default_factory=StainModelConfig)
    data: StreamConfig = field(default_factory=StreamConfig)
    train: FitConfig = field(default_factory=FitConfig)
