"""How a learner's weights move, as plain typed values (the configuration group `optimizer`)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule of a learner."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3  # the peak
    # Learning rate of each stage of the network as a share of that of the stage after it; the last layer has the whole
    # rate. 1: all layers have it.
    layer_decay: float = 1.0
    weight_decay: float = 0.05  # not for biases and normalisation layers
    momentum: float = 0.9  # of SGD
    betas: list[float] | None = None  # of Adam; null: [0.9, 0.999]
    # cosine: to zero. linear: to zero in the second half.
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05  # share of all steps in which the rate first rises from zero
    clip_norm: float | None = 5.0  # largest L2 norm of the whole gradient; null: no clipping
    average_decay: float = 0.0  # of the exponential moving average of the weights, which is scored; 0: no average

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate}: must be above 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay={self.layer_decay}: must be above 0 and at most 1")
        if self.betas is not None and len(self.betas) != 2:
            raise ValueError(f"optimizer.betas={list(self.betas)}: give two numbers, [0.9, 0.999] say")
        for name in ("warmup", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: must be at least 0 and below 1")
