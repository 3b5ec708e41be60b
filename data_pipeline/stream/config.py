"""How images are read and prepared, as plain typed values (the configuration group `data`)."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.cell_types import in_our_words
from data_pipeline.stream.augment import AugmentConfig


@dataclass(frozen=True)
class StreamConfig:
    """How images are read and prepared.

    image_size: side in pixels of the square the network sees.
    domains, cell_types: restrict the data set; null takes all.
    order: `global` reads any sample anywhere (local disks); `windowed` reads shards in sequence
    and shuffles `window` samples at a time (network stores). null is `windowed` where shards lie in a store and
    the sampling is uniform, else `global`.
    sampling: `uniform` shows every image once an epoch; `class_balanced` every type equally often.
    crop: domain -> share of the image's sides that is kept, in the middle, before resizing; a domain
    that is not named keeps all. Cells of two domains come to one scale by it. Generated images keep all:
    they have the scale that their generator was shown.
    threads: DALI's CPU threads of each process at most; null takes what the process may (data_pipeline/threads.py).
    prefetch: batches prepared ahead, where decoding has threads beside those that compute.
    deterministic: the same pixels on every run of one GPU kind.
    """

    image_size: int = 224
    domains: list[str] | None = None
    cell_types: list[str] | None = None
    order: Literal["global", "windowed"] | None = None
    window: int = 4096
    sampling: Literal["uniform", "class_balanced"] = "uniform"
    threads: int | None = None
    prefetch: int = 2
    deterministic: bool = False
    crop: dict[str, float] = field(default_factory=dict)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.cell_types is not None:
            object.__setattr__(self, "cell_types", in_our_words(self.cell_types))
        for name in ("image_size", "window", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)}: must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"data.threads={self.threads}: must be at least 1, or null")
        for domain, share in self.crop.items():
            check_crop(f"data.crop.{domain}", share)


def default_order(config: StreamConfig, in_store: bool) -> Literal["global", "windowed"]:
    """What data.order=null means for a data set with shards in a store, or without."""
    return "windowed" if in_store and config.sampling == "uniform" else "global"


def check_crop(name: str, share: float) -> None:
    """ValueError unless `share` can be the share of an image's sides that is kept."""
    if not 0 < share <= 1:
        raise ValueError(f"{name}={share}: must be above 0 and at most 1")
