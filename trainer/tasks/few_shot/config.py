"""Everything that a run of few-shot generation follows from."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.cell_types import in_our_words
from data_pipeline.dataset_config import DatasetConfig
from data_pipeline.errors import UserError
from data_pipeline.stream.config import StreamConfig
from models.few_shot.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from trainer.learners.choices import PenaltyMetric
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.loop.fit_config import FitConfig

# Of training images: those that a source brought, in the stain of another domain, drawn by a generator.
ORIGINS = ("real", "normalized", "synthetic")


def _adam() -> OptimizerConfig:
    """The outer Adam of meta-training; its rate is for 20,000 steps."""
    return OptimizerConfig(
        name="adam", learning_rate=1e-5, weight_decay=0.0, schedule="constant", warmup=0.0, clip_norm=None
    )


@dataclass(frozen=True)
class InnerLoopConfig:
    """How networks learn inside an episode (thesis, section 3.6).

    A round is `discriminator_steps` moves of the discriminator, then `generator_steps` of the generator and what
    learns with it. rounds: of an episode of meta-training. learning_rate, betas: of an Adam that starts fresh.
    """

    rounds: int = 10
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
class FewShotWeights:
    """The weight of each term beside the adversarial one.

    encoder, mode_seeking: of few_shot_meta (eq. 44); penalty and its metric: of figr and mine_gan;
    reconstruction: of fast_gan's discriminator.
    """

    encoder: float = 1.0
    mode_seeking: float = 1.0
    penalty: float = 10.0
    penalty_metric: PenaltyMetric = "euclidean"
    reconstruction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("encoder", "mode_seeking", "penalty", "reconstruction"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.weights.{name}={getattr(self, name)}: must be at least 0")


@dataclass(frozen=True)
class FewShotModelConfig:
    """Which algorithm, between which networks.

    few_shot_meta and figr are meta-trained on the rich types, mine_gan is trained on them; fast_gan and diff_augment
    see the rare type alone. meta: false adapts few_shot_meta or figr from its initial weights.
    encoder: of few_shot_meta. inner: how all of them learn from a few images.
    optimizer: of the training on the rich types (the outer loop, mine_gan's networks); rate_for_steps: the number of
    steps that its learning rate is meant for, a shorter training takes a rate that is larger in proportion, up to
    that of the inner loop; null takes it as it is.
    """

    algorithm: Literal["few_shot_meta", "figr", "fast_gan", "diff_augment", "mine_gan"] = "few_shot_meta"
    meta: bool = True
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    weights: FewShotWeights = field(default_factory=FewShotWeights)
    inner: InnerLoopConfig = field(default_factory=InnerLoopConfig)
    optimizer: OptimizerConfig = field(default_factory=_adam)
    rate_for_steps: int | None = None

    def __post_init__(self) -> None:
        if self.rate_for_steps is not None and self.rate_for_steps < 1:
            raise ValueError(f"model.rate_for_steps={self.rate_for_steps}: must be at least 1, or null")
        if not self.meta and self.algorithm not in ("few_shot_meta", "figr"):
            raise ValueError(f"model.meta=false: {self.algorithm} is not meta-trained; leave it out")

    @property
    def plays_episodes(self) -> bool:
        """Whether it is meta-trained on the rich types."""
        return self.algorithm in ("few_shot_meta", "figr") and self.meta

    @property
    def learns_from_rich(self) -> bool:
        """Whether anything is learned before the adaptation."""
        return self.plays_episodes or self.algorithm == "mine_gan"

    def scaled_optimizer(self, steps: int) -> OptimizerConfig:
        """The optimiser of a training on the rich types of so many steps."""
        rate = self.optimizer.learning_rate
        if self.rate_for_steps is not None and steps < self.rate_for_steps:
            # Adam moves every weight by its rate, however little an episode has moved it: a larger step than the inner
            # loop's would overrun what the episode has learned.
            rate = max(rate, min(rate * self.rate_for_steps / steps, self.inner.learning_rate))
        return dataclasses.replace(self.optimizer, learning_rate=rate)


@dataclass(frozen=True)
class AdaptationConfig:
    """How a rare type is adapted to. train.checkpoint_every and train.log_every count rounds there.

    images: the budget of each rare type, one batch for each move of a learner, so that algorithms whose rounds differ
    see as many. average_decay: of the moving average of the weights that makes images; 0 keeps none.
    """

    images: int = 80_000
    average_decay: float = 0.99

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"adaptation.images={self.images}: must be at least 1")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"adaptation.average_decay={self.average_decay}: must be at least 0 and below 1")

    def rounds(self, moves: int, batch: int) -> int:
        """Rounds of so many moves, on `batch` images each."""
        return -(-self.images // (moves * batch))


@dataclass(frozen=True)
class FewShotRunConfig(DatasetConfig):
    """A run that learns to make cells of rare types from a few images of each.

    shards, cache, cache_size: see DatasetConfig. run: where the run is written.
    rich_types: cell types to learn from before; null takes all with training images that are not rare.
    rare_types: those to adapt to, one set of weights for each; null takes those with fewer than 100 training images.
    origins: of the rich types' images (real, normalized, synthetic).
    shots: images of an episode and of a batch of the adaptation, or fewer where a rare type has fewer. A
    train.global_batch of several times as many images plays several episodes for each step of the outer loop.
    sheet_columns: training images of each rare type on a sample sheet.
    """

    run: str | None = None
    seed: int = 0
    rich_types: list[str] | None = None
    rare_types: list[str] | None = None
    origins: list[str] = field(default_factory=lambda: list(ORIGINS))
    shots: int = 8
    sheet_columns: int = 8
    model: FewShotModelConfig = field(default_factory=FewShotModelConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    data: StreamConfig = field(default_factory=StreamConfig)
    train: FitConfig = field(default_factory=FitConfig)

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
        if self.model.plays_episodes and self.train.global_batch % self.shots:
            raise ValueError(
                f"train.global_batch={self.train.global_batch}: a step plays whole episodes of shots={self.shots} "
                "images; give a multiple of that"
            )

    def check_processes(self, processes: int) -> None:
        """UserError where so many processes cannot share a step out as whole episodes."""
        together = self.shots * processes
        if self.model.plays_episodes and self.train.global_batch % together:
            raise UserError(
                f"train.global_batch={self.train.global_batch}: {processes} processes play whole episodes of "
                f"shots={self.shots} images each; give a multiple of {together}"
            )
