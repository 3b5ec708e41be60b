"""Settings of drawing images from a generator."""

from dataclasses import dataclass, field

from data_pipeline.cell_types import in_our_words


@dataclass(frozen=True)
class SynthesizeConfig:
    """Which images are drawn from which generator."""

    run: str | None = None  # of train_conditional_gan.py or train_few_shot_gan.py
    bank: str | None = None  # folder of the image bank
    cell_types: list[str] = field(default_factory=list)  # empty: all that the run can make
    count: int | None = None  # images of each type
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cell_types", in_our_words(self.cell_types))
        if self.count is not None and self.count < 1:
            raise ValueError(f"count={self.count}: must be at least 1")
