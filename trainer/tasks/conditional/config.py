"""Settings of a run that learns to make images of a wanted cell type."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from data_pipeline.dataset_config import AFFECTS_NOTHING
from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.loop.fit_config import SelectedFitConfig
from trainer.runs.config import RunConfig
from trainer.runs.registry import check_algorithm

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
class ConditionalModelConfig:
    """Which algorithm, between which networks. Images are made with the generator's running average."""

    algorithm: str = "c_wgan_gp"  # a file of trainer/tasks/conditional/algorithms
    options: dict[str, Any] = field(default_factory=dict)  # the algorithm's own settings: `Options` in its file
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)  # where the algorithm has one
    critic_steps: int = 5  # critic's moves for each of the generator's, each on a global batch of its own
    generator_optimizer: OptimizerConfig = field(default_factory=lambda: _adam(average_decay=0.999))
    critic_optimizer: OptimizerConfig = field(default_factory=_adam)
    classifier_optimizer: OptimizerConfig = field(default_factory=_adam)

    def __post_init__(self) -> None:
        check_algorithm("conditional", self.algorithm)
        if self.critic_steps < 1:
            raise ValueError(f"model.critic_steps={self.critic_steps}: must be at least 1")


@dataclass(frozen=True)
class ConditionalRunConfig(RunConfig):
    """Settings of a run that learns to make images of a wanted cell type.

    data.cell_types null takes MODERATE_TYPES that have training images; data.sampling is always class_balanced. An
    epoch shows as many real images as the data set has: each step takes model.critic_steps global batches.
    """

    kind: ClassVar[str] = "conditional"
    # Real and generated images of each type on a sample sheet; one sheet is drawn at the end of each epoch.
    samples_per_type: int = field(default=4, metadata=AFFECTS_NOTHING)
    model: ConditionalModelConfig = field(default_factory=ConditionalModelConfig)
    train: SelectedFitConfig = field(default_factory=SelectedFitConfig)
    # Features in which the best checkpoint is nearest to validation images: a classifier's run, which also says how
    # many images show the type asked for; inception; null: a random network.
    features: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_type < 1:
            raise ValueError(f"samples_per_type={self.samples_per_type}: must be at least 1")
