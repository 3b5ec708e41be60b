"""How images are read and prepared, as plain typed values (the configuration group `data`)."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.cell_types import in_our_words
from data_pipeline.dataset_config import AFFECTS_NOTHING
from data_pipeline.stream.augment import AugmentConfig


@dataclass(frozen=True)
class StreamConfig:
    """How images are read and prepared."""

    image_size: int = 224  # side in pixels of the square that the network sees
    domains: list[str] | None = None  # null: all
    cell_types: list[str] | None = None  # null: all
    # global: any sample anywhere (local disks). windowed: shards in sequence, `window` samples shuffled at a time
    # (network stores). null: windowed where shards lie in a store and the sampling is uniform, else global.
    order: Literal["global", "windowed"] | None = None
    window: int = 4096  # size of the shuffle window in samples, with order: windowed
    # uniform: every image once an epoch. class_balanced: every cell type equally often. domain_balanced: every cell
    # type equally often, and within a type every domain, as far as `most_repeats` allows.
    sampling: Literal["uniform", "class_balanced", "domain_balanced"] = "uniform"
    # domain_balanced: how many times as often as the others of its type an image is drawn, at most.
    most_repeats: float = 20.0
    threads: int | None = field(default=None, metadata=AFFECTS_NOTHING)  # of DALI, at most; null: see threads.py
    prefetch: int = field(default=2, metadata=AFFECTS_NOTHING)  # batches decoded ahead, if decoding has its own threads
    deterministic: bool = False  # the same pixels on every run of one GPU kind
    # Domain -> fraction of each side that a central crop keeps, before resizing. It brings cells of two domains to one
    # scale. Other domains are not cropped, nor are generated images: their generator learned from cropped images.
    crop: dict[str, float] = field(default_factory=dict)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.cell_types is not None:
            object.__setattr__(self, "cell_types", in_our_words(self.cell_types))
        for name in ("image_size", "window", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)}: must be at least 1")
        if self.most_repeats < 1:
            raise ValueError(f"data.most_repeats={self.most_repeats}: must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"data.threads={self.threads}: must be at least 1, or null")
        for domain, share in self.crop.items():
            check_crop(f"data.crop.{domain}", share)


def default_order(config: StreamConfig, in_store: bool) -> Literal["global", "windowed"]:
    """The order that data.order=null stands for. in_store: the shards are in an object store."""
    return "windowed" if in_store and config.sampling == "uniform" else "global"


def check_crop(name: str, share: float) -> None:
    """ValueError unless `share` is a fraction of an image's sides, (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"{name}={share}: must be above 0 and at most 1")
