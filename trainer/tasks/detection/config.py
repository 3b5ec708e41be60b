"""Settings of a detector's run."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from models.detection.config import DetectorConfig
from trainer.learners.choices import NetworkChoices
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.runs.config import RunConfig
from trainer.runs.registry import check_algorithm


@dataclass(frozen=True)
class DetectorModelConfig:
    """Which algorithm trains which network."""

    algorithm: str = "fcos"  # a file of trainer/tasks/detection/algorithms
    options: dict[str, Any] = field(default_factory=dict)  # the algorithm's own settings: `Options` in its file
    network: DetectorConfig = field(default_factory=DetectorConfig)
    choices: NetworkChoices = field(default_factory=NetworkChoices)

    def __post_init__(self) -> None:
        check_algorithm("detection", self.algorithm)


@dataclass(frozen=True)
class DetectorRunConfig(RunConfig):
    """Settings of a detector's run."""

    kind: ClassVar[str] = "detection"
    model: DetectorModelConfig = field(default_factory=DetectorModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.image_size % 32:
            raise ValueError(f"data.image_size={self.data.image_size}: must be a multiple of 32 for a detector")
        if self.data.cell_types is not None or self.data.crop:
            raise ValueError("data.cell_types and data.crop are for images of single cells: leave them out")
