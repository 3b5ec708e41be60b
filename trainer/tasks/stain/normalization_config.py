"""Which images take which stain, as plain typed values."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.dataset_config import AFFECTS_NOTHING, DatasetConfig

# to_a: images of b take the stain of a. to_b: the reverse. thesis: the rule below, by the label; in the training split
# only, as scored images have none. thesis_predicted: the same rule by the type that `classifier` names, in all splits.
Policy = Literal["to_a", "to_b", "thesis", "thesis_predicted"]
# Section 4.1 of the thesis, whose A is Barcelona: types whose images of B take the stain of A, and the reverse. Others
# stay as they are. By its tables 2 and 3 lymphocytes are fewer in A; it says the contrary, and normalises them to B.
TO_A = ("basophil", "eosinophil", "erythroblast", "immature granulocyte", "monocyte")
TO_B = ("lymphocyte",)


@dataclass(frozen=True)
class NormalizeConfig(DatasetConfig):
    """Which images take which stain, and by which normaliser: that of `run`, or `method`."""

    out: str | None = None  # folder of the new data set
    run: str | None = None  # run of train_stain_gan.py; it has its own a, b, image_size and crop
    method: Literal["reinhard", "reinhard_domain", "macenko"] | None = None  # fitted on training images of both domains
    a: str | None = None  # domain, for method=
    b: str | None = None  # domain, for method=
    policy: Policy = "to_a"
    classifier: str | None = None  # run of train_classifier.py on raw images, for policy=thesis_predicted
    image_size: int | None = None  # pixels, of the normalised images; null is 256, for method=
    crop: dict[str, float] = field(default_factory=dict)  # as data.crop, for method=
    batch: int = field(default=64, metadata=AFFECTS_NOTHING)  # images on the device at a time
