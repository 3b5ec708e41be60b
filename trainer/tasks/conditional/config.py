"""Everything that a run of a conditional generator follows from."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.dataset_config import DatasetConfig
from data_pipeline.stream.config import StreamConfig
from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.loop.fit_config import FitConfig


def _adam(average_decay: float = 0.0) -> OptimizerConfig:
    """Adam as WGAN-GP has it for deep networks (Gulrajani et al. 2017, section 5): no momentum."""
    return OptimizerConfig(
        name="adam",
        learning_rate=2e-4,
        weight_decay=0.0,
        betas=[0.0, 0.9],
        schedule="constant",
        warmup=0.0,
        clip_norm=None,
        average_decay=average_decay,
    )


@dataclass(frozen=True)
class ConditionalWeights:
    """The weight of each term.

    penalty: of eq. 26, c_wgan_gp's and cwgan_gp's. classification: of c_wgan_gp's classifier in what its
    generator minimises, in the first step and in the last, linear between them.
    """

    penalty: float = 10.0
    classification_first: float = 0.1
    classification_last: float = 1.0

    def __post_init__(self) -> None:
        for name in ("penalty", "classification_first", "classification_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.weights.{name}={getattr(self, name)}: must be at least 0")


@dataclass(frozen=True)
class ConditionalModelConfig:
    """Which algorithm, between which networks.

    critic_steps: critic's moves for each of the generator's, each on a global batch of its own. weights: of
    the terms of c_wgan_gp and cwgan_gp. classifier and its optimiser: of c_wgan_gp. The generator's running
    average is what images are made with.
    """

    algorithm: Literal["c_wgan_gp", "ac_gan", "cwgan_gp", "info_gan", "dcgan", "cgan"] = "c_wgan_gp"
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    weights: ConditionalWeights = field(default_factory=ConditionalWeights)
    critic_steps: int = 5
    generator_optimizer: OptimizerConfig = field(default_factory=lambda: _adam(average_decay=0.999))
    critic_optimizer: OptimizerConfig = field(default_factory=_adam)
    classifier_optimizer: OptimizerConfig = field(default_factory=_adam)

    def __post_init__(self) -> None:
        if self.critic_steps < 1:
            raise ValueError(f"model.critic_steps={self.critic_steps}: must be at least 1")
        if self.algorithm in ("c_wgan_gp", "cwgan_gp") and self.critic.norm == "batch":
            raise ValueError(
                f"model.critic.norm=batch: the gradient penalty of {self.algorithm} is of each image alone: use none"
            )


@dataclass(frozen=True)
class ConditionalRunConfig(DatasetConfig):
    """A run that learns to make images of a wanted cell type.

    shards, cache, cache_size: see DatasetConfig. run: where the run is written. samples_per_type: real and generated
    images of each type on a sample sheet, of which one is drawn at the end of each epoch.
    data.cell_types null takes MODERATE_TYPES, of those that have training images; data.sampling is always
    class_balanced. An epoch shows as many real images as the data set has, whatever the algorithm: each of its
    steps takes model.critic_steps global batches.
    """

    run: str | None = None
    seed: int = 0
    samples_per_type: int = 4
    model: ConditionalModelConfig = field(default_factory=ConditionalModelConfig)
    data: StreamConfig = field(default_factory=StreamConfig)
    train: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_type < 1:
            raise ValueError(f"samples_per_type={self.samples_per_type}: must be at least 1")


# Those with 1,000 to 6,000 images in the thesis (section 3.5); neutrophils are plenty, the others too few.
MODERATE_TYPES: tuple[str, ...] = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "myeloblast",
    "platelet",
)
