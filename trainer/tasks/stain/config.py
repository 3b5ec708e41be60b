"""Settings of a run between two stains."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from data_pipeline.dataset_config import AFFECTS_NOTHING
from models.stain.config import CriticConfig, GeneratorConfig
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.runs.config import RunConfig
from trainer.runs.registry import check_algorithm


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
class StainModelConfig:
    """Which algorithm trains which networks."""

    algorithm: str = "w_cyclegan_gp"  # a file of trainer/tasks/stain/algorithms
    options: dict[str, Any] = field(default_factory=dict)  # the algorithm's own settings: `Options` in its file
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    critic_steps: int = 1  # optimizer steps of the critics per step of the generators, if the algorithm uses it
    generator_optimizer: OptimizerConfig = field(default_factory=_adam)
    critic_optimizer: OptimizerConfig = field(default_factory=_adam)

    def __post_init__(self) -> None:
        check_algorithm("stain", self.algorithm)
        if self.critic_steps < 1:
            raise ValueError(f"model.critic_steps={self.critic_steps}: must be at least 1")


@dataclass(frozen=True)
class StainRunConfig(RunConfig):
    """Settings of a run between two stains."""

    kind: ClassVar[str] = "stain"
    # The two domains; images of b are normalised to the stain of a. null: the two domains of the data set, a being
    # barcelona, as in the thesis, or else the one with more images.
    a: str | None = None
    b: str | None = None
    # cell_type: batches of both domains have the same types in the same order, so that a generator does not learn to
    # change the type. none: images in random order, unlabelled ones too.
    matching: Literal["cell_type", "none"] = "cell_type"
    # Domain -> folds to learn from, in place of its training split (for cross-fits).
    folds: dict[str, list[int]] = field(default_factory=dict)
    # Images of each type on a sample sheet; one sheet is drawn at the end of each epoch.
    samples_per_type: int = field(default=2, metadata=AFFECTS_NOTHING)
    model: StainModelConfig = field(default_factory=StainModelConfig)
