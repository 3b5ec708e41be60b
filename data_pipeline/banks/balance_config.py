"""What makes a balanced data set, as plain typed values."""

from dataclasses import dataclass, field

from data_pipeline.dataset_config import DatasetConfig


@dataclass(frozen=True)
class BalanceConfig(DatasetConfig):
    """What is added to which data set.

    shards, cache, cache_size: see DatasetConfig. banks: image banks of synthesize.py, in the order in which they are
    used; each gives its folder's name to its images as their source. out: the new data set. per_type: training images
    that each type is brought to; a type with more keeps them all. best: name of a score, whose highest come first;
    null takes the first images of each bank. domains: those whose training images count, as data.domains of the
    classifier; null counts all. Images of others are kept all the same.
    """

    banks: list[str] = field(default_factory=list)
    out: str | None = None
    per_type: int | None = None
    best: str | None = None
    domains: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_type is not None and self.per_type < 1:
            raise ValueError(f"per_type={self.per_type}: must be at least 1")
