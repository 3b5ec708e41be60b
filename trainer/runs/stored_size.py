"""At which size a data set's images load faster and look the same to a network."""

import math

from data_pipeline.catalog import Dataset
from data_pipeline.stream.config import StreamConfig

# Below this factor in the side, decoding gains little.
_WORTH_IT = 1.5


def propose_stored_size(dataset: Dataset, data: StreamConfig) -> str | None:
    """A line that names a smaller stored_size= for build_shards.py; None where images are about as small already.

    With the largest zoom and the closest crop, a pixel of the network is still no smaller than one of the stored image.
    """
    stored = dataset.metadata["settings"]["stored_size"]
    if not stored:
        stored = dataset.samples(domains=data.domains, columns=["width", "height"]).min(axis=1).median()
    closest = min((data.crop.get(domain, 1.0) for domain in data.domains or dataset.domains()), default=1.0)
    zoom = getattr(data.augment, "scale", 1.0)  # a field of the registered operation `geometry`
    # In steps of 8 pixels, a block of a JPEG file.
    needed = 8 * math.ceil(data.image_size * zoom / closest / 8)
    if not stored >= _WORTH_IT * needed:  # or unknown
        return None
    return (
        f"images are stored at {stored:.0f} px, and {needed} are enough for data.image_size={data.image_size}: a data "
        f"set that build_shards.py writes with stored_size={needed} loads faster"
    )
