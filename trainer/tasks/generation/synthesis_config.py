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
    truncation: float = 1.0  # factor of the noise: below 1 images are more typical and less diverse
    variations: bool = False  # variations of training images, by the encoder of a few-shot run
    strength: float = 0.3  # of a variation: 0, the reconstruction; 1, as far as the type's images lie apart

    def __post_init__(self) -> None:
        object.__setattr__(self, "cell_types", in_our_words(self.cell_types))
        if self.count is not None and self.count < 1:
            raise ValueError(f"count={self.count}: must be at least 1")
        if not 0 < self.truncation <= 1:
            raise ValueError(f"truncation={self.truncation}: must be above 0 and at most 1")
        if self.strength < 0:
            raise ValueError(f"strength={self.strength}: must be at least 0")
        if self.variations and self.truncation != 1:
            raise ValueError(f"truncation={self.truncation}: variations have strength= instead; leave it out")
