"""Which images take which stain, as plain typed values."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.dataset_config import AFFECTS_NOTHING, DatasetConfig

# to_a: images of b take the stain of a. to_b: the reverse. thesis: of each cell type, the domain with fewer images
# takes the stain of the other; in the training split only, as it needs the label.
Policy = Literal["to_a", "to_b", "thesis"]


@dataclass(frozen=True)
class NormalizeConfig(DatasetConfig):
    """Which images take which stain, and by which normaliser: that of `run`, or `method`."""

    out: str | None = None  # folder of the new data set
    run: str | None = None  # run of train_stain_gan.py; it has its own a, b, image_size and crop
    method: Literal["reinhard", "reinhard_domain", "macenko"] | None = None  # fitted on training images of both domains
    a: str | None = None  # domain, for method=
    b: str | None = None  # domain, for method=
    policy: Policy = "to_a"
    image_size: int | None = None  # pixels, of the normalised images; null is 256, for method=
    crop: dict[str, float] = field(default_factory=dict)  # as data.crop, for method=
    fit_images: int = 500  # most images of each domain that method= is fitted on
    batch: int = field(default=64, metadata=AFFECTS_NOTHING)  # images on the device at a time
