"""How long, in what portions and how networks are trained, as plain typed values (the configuration group `train`)."""

from dataclasses import dataclass

from trainer.learners.choices import EngineChoice, PrecisionChoice


@dataclass(frozen=True)
class FitConfig:
    """How long and in what portions to train.

    epochs: passes over the data, or portions of `iterations_per_epoch` steps (the thesis: 200 of 256).
    global_batch: images per optimiser step over all processes. micro_batch: most images a device holds
    at once; null takes a process's whole slice. find_micro_batch: it is found at the start, the largest that the device
    has room for; batch norm takes its means over it. precision: see resolve_precision. engine: DDP or
    DeepSpeed's ZeRO, see resolve_engine. checkpoint_every, log_every: in steps.
    """

    epochs: int = 200
    iterations_per_epoch: int | None = None
    global_batch: int = 64
    micro_batch: int | None = None
    find_micro_batch: bool = False
    precision: PrecisionChoice = "auto"
    engine: EngineChoice = "auto"
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("epochs", "global_batch", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1")
        if self.find_micro_batch and self.micro_batch is not None:
            raise ValueError(f"train.micro_batch={self.micro_batch}: find_micro_batch is to find it: give one of them")
        for name in ("iterations_per_epoch", "micro_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1, or null")
