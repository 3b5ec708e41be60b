"""Everything that a run of few-shot generation follows from."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.catalog import Dataset
from data_pipeline.dataset_config import DatasetConfig
from data_pipeline.errors import UserError
from data_pipeline.stream import StreamConfig
from models.few_shot import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from trainer.episodes import ORIGINS, FewShotData, choose_data
from trainer.fit import FitConfig
from trainer.games.few_shot import FewShotWeights, InnerLoopConfig
from trainer.player import OptimizerConfig


def _adam() -> OptimizerConfig:
    """The outer Adam of meta-training; its rate is for 20,000 steps."""
    return OptimizerConfig(
        name="adam", learning_rate=1e-5, weight_decay=0.0, schedule="constant", warmup=0.0, clip_norm=None
    )


@dataclass(frozen=True)
class FewShotModelConfig:
    """Which game, between which networks.

    few_shot_meta and figr are meta-trained on the rich types, mine_gan is trained on them; fast_gan and diff_augment
    see the rare type alone. meta: false adapts few_shot_meta or figr from its initial weights.
    encoder: of few_shot_meta. inner: how all of them learn from a few images.
    optimizer: of the training on the rich types (the outer loop, mine_gan's networks); rate_for_steps: the number of
    steps that its learning rate is meant for, a shorter training takes a rate that is larger in proportion, up to
    that of the inner loop; null takes it as it is.
    """

    game: Literal["few_shot_meta", "figr", "fast_gan", "diff_augment", "mine_gan"] = "few_shot_meta"
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
        if not self.meta and self.game not in ("few_shot_meta", "figr"):
            raise ValueError(f"model.meta=false: {self.game} is not meta-trained; leave it out")

    @property
    def plays_episodes(self) -> bool:
        """Whether it is meta-trained on the rich types."""
        return self.game in ("few_shot_meta", "figr") and self.meta

    @property
    def learns_from_rich(self) -> bool:
        """Whether anything is learned before the adaptation."""
        return self.plays_episodes or self.game == "mine_gan"

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

    images: the budget of each rare type, one batch for each move of a player, so that games whose rounds differ
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

    def choose_data(self, dataset: Dataset) -> FewShotData:
        """The images that a run learns from; see `episodes.choose_data`."""
        return choose_data(
            dataset,
            domains=self.data.domains,
            cell_types=self.data.cell_types,
            rich=self.rich_types if self.model.learns_from_rich else [],
            rare=self.rare_types,
            origins=self.origins,
        )
