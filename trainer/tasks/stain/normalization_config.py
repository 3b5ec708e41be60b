"""Which images take which stain, as plain typed values."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.dataset_config import DatasetConfig

Policy = Literal["to_a", "to_b", "thesis"]


@dataclass(frozen=True)
class NormalizeConfig(DatasetConfig):
    """Which images take which stain, and by what.

    shards, cache, cache_size: see DatasetConfig. out: the new data set. run: of train_stain_gan.py, or method: a
    classical normaliser, fitted on training images of both domains. a, b: the domains, for method=; a run knows its
    own.
    policy: `to_a` gives b's images the stain of a; `to_b` the reverse; `thesis` gives each cell type, in
    the domain that has fewer of it, the stain of the other, in the training split only, since it needs
    each image's label. image_size: of the normalised images, in pixels; null takes the run's, or 256.
    crop: as data.crop, for method=. fit_images: of each domain that a classical normaliser is fitted on.
    batch: images in the device at a time.
    """

    out: str | None = None
    run: str | None = None
    method: Literal["reinhard", "reinhard_domain", "macenko"] | None = None
    a: str | None = None
    b: str | None = None
    policy: Policy = "to_a"
    image_size: int | None = None
    crop: dict[str, float] = field(default_factory=dict)
    fit_images: int = 500
    batch: int = 64
