"""What makes a balanced data set, as plain typed values."""

from dataclasses import dataclass, field

from data_pipeline.dataset_config import DatasetConfig


@dataclass(frozen=True)
class BalanceConfig(DatasetConfig):
    """What is added to which data set (`shards`)."""

    banks: list[str] = field(default_factory=list)  # of synthesize.py, in order of use; the folder names the source
    out: str | None = None  # the new data set
    per_type: int | None = None  # training images of each type; a type with more keeps them all
    best: str | None = None  # name of a score, highest first; null: the first images of each bank
    domains: list[str] | None = None  # whose training images count, as data.domains of the classifier; null: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_type is not None and self.per_type < 1:
            raise ValueError(f"per_type={self.per_type}: must be at least 1")
