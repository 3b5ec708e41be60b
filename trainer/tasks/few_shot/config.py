"""Settings of a run of few-shot generation."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data_pipeline.cell_types import in_our_words
from data_pipeline.dataset_config import AFFECTS_NOTHING, AFFECTS_RESULT
from models.few_shot.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.runs.config import RunConfig
from trainer.runs.registry import check_algorithm

# Origins of training images: from a source, in the stain of another domain, from a generator.
ORIGINS = ("real", "normalized", "synthetic")


def _adam() -> OptimizerConfig:
    """The outer Adam of meta-training; its rate is for 20,000 steps."""
    return OptimizerConfig(
        name="adam", learning_rate=1e-5, weight_decay=0.0, schedule="constant", warmup=0.0, clip_norm=None
    )


@dataclass(frozen=True)
class InnerLoopConfig:
    """How networks learn inside an episode (thesis, section 3.6), with an Adam that starts fresh.

    A round is `discriminator_steps` moves of the discriminator, then `generator_steps` of the generator and what
    learns with it.
    """

    rounds: int = 10  # of an episode of meta-training
    discriminator_steps: int = 2
    generator_steps: int = 5
    learning_rate: float = 2e-4
    betas: list[float] = field(default_factory=lambda: [0.5, 0.999])

    def __post_init__(self) -> None:
        for name in ("rounds", "discriminator_steps", "generator_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.inner.{name}={getattr(self, name)}: must be at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"model.inner.learning_rate={self.learning_rate}: must be above 0")
        if len(self.betas) != 2:
            raise ValueError(f"model.inner.betas={list(self.betas)}: give two numbers, [0.5, 0.999] say")

    @property
    def moves(self) -> int:
        """Moves of a round, each on one batch of images."""
        return self.discriminator_steps + self.generator_steps


@dataclass(frozen=True)
class FewShotModelConfig:
    """Which algorithm, between which networks."""

    algorithm: str = "few_shot_meta"  # a file of trainer/tasks/few_shot/algorithms
    options: dict[str, Any] = field(default_factory=dict)  # the algorithm's own settings: `Options` in its file
    meta: bool = True  # false: a meta-trained algorithm adapts from its initial weights
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # where the algorithm has one
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    inner: InnerLoopConfig = field(default_factory=InnerLoopConfig)
    # Of the training on the rich types: the outer loop of meta-training, or a plain training.
    optimizer: OptimizerConfig = field(default_factory=_adam)
    # Number of steps that the optimizer's learning rate is meant for. In a shorter training the rate is larger in
    # proportion, at most that of the inner loop. null: the rate does not change.
    rate_for_steps: int | None = None

    def __post_init__(self) -> None:
        check_algorithm("few_shot", self.algorithm)
        if self.rate_for_steps is not None and self.rate_for_steps < 1:
            raise ValueError(f"model.rate_for_steps={self.rate_for_steps}: must be at least 1, or null")

    def scaled_optimizer(self, steps: int) -> OptimizerConfig:
        """The optimizer of a training on the rich types of so many steps."""
        rate = self.optimizer.learning_rate
        if self.rate_for_steps is not None and steps < self.rate_for_steps:
            # Adam moves every weight by its rate, however little an episode has moved it: a larger step than the inner
            # loop's would overrun what the episode has learned.
            rate = max(rate, min(rate * self.rate_for_steps / steps, self.inner.learning_rate))
        return dataclasses.replace(self.optimizer, learning_rate=rate)


@dataclass(frozen=True)
class AdaptationConfig:
    """How a rare type is adapted to. train.checkpoint_every and train.log_every count rounds there."""

    # Training images shown in each adaptation, one batch per optimizer step. It is counted in images, so that
    # algorithms with different rounds see equally many.
    images: int = 80_000
    average_decay: float = 0.99  # of the moving average of the weights, which generates the images; 0: no average
    # Independent adaptations to each rare type, which make equal shares of its images. They are spread over the ranks,
    # so that more GPUs than rare types are of use; the images do not depend on the number of ranks.
    seeds: int = field(default=1, metadata=AFFECTS_RESULT)

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"adaptation.images={self.images}: must be at least 1")
        if self.seeds < 1:
            raise ValueError(f"adaptation.seeds={self.seeds}: must be at least 1")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"adaptation.average_decay={self.average_decay}: must be at least 0 and below 1")

    def rounds(self, moves: int, batch: int) -> int:
        """Rounds of `moves` moves on `batch` images each."""
        return -(-self.images // (moves * batch))


@dataclass(frozen=True)
class FewShotRunConfig(RunConfig):
    """Settings of a run that learns to make cells of rare types from a few images of each."""

    kind: ClassVar[str] = "few_shot"
    # Cell types to learn from first; null: all with training images that are not rare.
    rich_types: list[str] | None = None
    # Those to adapt to, one set of weights for each; null: those with fewer than 100 training images.
    rare_types: list[str] | None = field(default=None, metadata=AFFECTS_RESULT)
    origins: list[str] = field(default_factory=lambda: list(ORIGINS))  # of the rich types' images
    # Images of an episode and of a batch of the adaptation, or fewer where a rare type has fewer. A step of the outer
    # loop runs as many episodes as train.global_batch holds.
    shots: int = 8
    # Training images of each rare type on a sample sheet.
    sheet_columns: int = field(default=8, metadata=AFFECTS_NOTHING)
    model: FewShotModelConfig = field(default_factory=FewShotModelConfig)
    # Features in which an adaptation's best checkpoint is nearest to the type's validation images, if there are enough:
    # a classifier's run, inception, or null: a random network.
    features: str | None = field(default=None, metadata={"affects": "adaptation"})
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig, metadata={"affects": "adaptation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rich_types", "rare_types"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, in_our_words(getattr(self, name)))
        for name in ("shots", "sheet_columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        unknown = [name for name in self.origins if name not in ORIGINS]
        if unknown or not self.origins:
            raise ValueError(f"origins={list(self.origins)}: give some of {', '.join(ORIGINS)}")
        if self.train.find_micro_batch:
            raise ValueError("train.find_micro_batch=true: episodes are not divided: leave it out")
