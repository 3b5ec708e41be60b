"""What makes a balanced data set, as plain typed values."""

from dataclasses import dataclass, field

from data_pipeline.dataset_config import DatasetConfig

AUTO = "auto"  # in place of a number of images


@dataclass(frozen=True)
class BalanceConfig(DatasetConfig):
    """What is added to which data set (`shards`)."""

    banks: list[str] = field(default_factory=list)  # of synthesize.py, in order of use; the folder names the source
    out: str | None = None  # the new data set
    # Training images of each type, a number; a type with more keeps them all. auto: what validation images ask for.
    per_type: str | None = None
    classifier: str | None = None  # of auto: a run of train_classifier.py, whose features are compared
    best: list[str] = field(default_factory=list)  # scores, highest mean rank first; []: the first of each bank
    least: dict[str, float] = field(default_factory=dict)  # score -> least value of an image that is taken
    at_most: float | None = None  # generated images for each real one of a type; null: any number
    domains: list[str] | None = None  # whose training images count, as data.domains of the classifier; null: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_type not in (None, AUTO) and not (self.per_type.isdecimal() and int(self.per_type) >= 1):
            raise ValueError(f"per_type={self.per_type}: must be a number of at least 1, or auto")
        if (self.per_type == AUTO) != (self.classifier is not None):
            raise ValueError(
                f"per_type={self.per_type}, classifier={self.classifier}: per_type=auto needs classifier=RUN, a run of "
                "train_classifier.py of this data set, and nothing else does"
            )
        if self.at_most is not None and self.at_most <= 0:
            raise ValueError(f"at_most={self.at_most}: must be above 0, or null")

    @property
    def scores(self) -> list[str]:
        """The scores that images are chosen by."""
        return list(dict.fromkeys([*self.best, *self.least]))
