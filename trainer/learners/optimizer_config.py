"""How a learner's weights move, as plain typed values (the configuration group `optimizer`)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule of a learner.

    learning_rate: the peak. schedule: `cosine` to zero, `linear` to zero in the second half, or
    `constant`. warmup: share of all steps in which the rate first rises from zero.
    weight_decay: not for biases and normalisation layers. momentum: for SGD. betas: for Adam.
    clip_norm: largest L2 norm of the whole gradient; null: no clipping.
    average_decay: decay of the exponential moving average of the weights, which is scored; 0: no average.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    betas: list[float] | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    clip_norm: float | None = 5.0
    average_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate}: must be above 0")
        if self.betas is not None and len(self.betas) != 2:
            raise ValueError(f"optimizer.betas={list(self.betas)}: give two numbers, [0.9, 0.999] say")
        for name in ("warmup", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: must be at least 0 and below 1")
