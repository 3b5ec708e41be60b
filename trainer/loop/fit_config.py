"""Length and batches of a training, as plain typed values (the configuration group `train`)."""

from dataclasses import dataclass, field

from data_pipeline.dataset_config import AFFECTS_NOTHING, AFFECTS_RESULT
from trainer.learners.choices import EngineChoice, PrecisionChoice


@dataclass(frozen=True)
class FitConfig:
    """Length and batches of a training."""

    epochs: int = 200
    iterations_per_epoch: int | None = None  # steps of an epoch; null: one pass over the data
    global_batch: int = 64  # images per optimizer step, over all ranks
    # Most images on a device at once; null: a whole slice.
    micro_batch: int | None = field(default=None, metadata=AFFECTS_RESULT)
    # Start with the largest micro-batch that fits the device.
    find_micro_batch: bool = field(default=False, metadata=AFFECTS_NOTHING)
    precision: PrecisionChoice = "auto"  # see resolve_precision
    # DDP or DeepSpeed's ZeRO, see resolve_engine.
    engine: EngineChoice = field(default="auto", metadata=AFFECTS_NOTHING)
    checkpoint_every: int = field(default=500, metadata=AFFECTS_NOTHING)  # steps
    keep_checkpoints: int = field(default=2, metadata=AFFECTS_NOTHING)
    log_every: int = field(default=10, metadata=AFFECTS_NOTHING)  # steps

    def __post_init__(self) -> None:
        for name in ("epochs", "global_batch", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1")
        if self.find_micro_batch and self.micro_batch is not None:
            raise ValueError(f"train.micro_batch={self.micro_batch}: find_micro_batch is to find it: give one of them")
        for name in ("iterations_per_epoch", "micro_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1, or null")


@dataclass(frozen=True)
class SelectedFitConfig(FitConfig):
    """Of a training whose best epoch is chosen by a validation score."""

    # Epochs without a better one after which training stops; null: no early stop.
    patience: int | None = field(default=None, metadata=AFFECTS_RESULT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"train.patience={self.patience}: must be at least 1, or null")
