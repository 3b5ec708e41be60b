"""What is drawn from which generator, as plain typed values."""

from dataclasses import dataclass, field

from data_pipeline.cell_types import in_our_words


@dataclass(frozen=True)
class SynthesizeConfig:
    """What is drawn from which generator.

    run: of train_conditional_gan.py or train_few_shot_gan.py. bank: the folder of the image bank. cell_types: those
    to be made, all that the run can make where it is empty. count: images of each type.
    """

    run: str | None = None
    bank: str | None = None
    cell_types: list[str] = field(default_factory=list)
    count: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cell_types", in_our_words(self.cell_types))
        if self.count is not None and self.count < 1:
            raise ValueError(f"count={self.count}: must be at least 1")
