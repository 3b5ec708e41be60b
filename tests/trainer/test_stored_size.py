"""If these fail, a training decodes pixels that its network never sees, and nobody learns of it."""

import dataclasses

from data_pipeline.catalog import Dataset
from data_pipeline.stream.augment import AugmentConfig
from data_pipeline.stream.config import StreamConfig
from trainer.runs.stored_size import propose_stored_size


def test_large_images_are_proposed_at_the_size_that_the_closest_crop_needs(tiny_dataset: Dataset) -> None:
    rows = tiny_dataset.samples(columns=["domain", "width", "height"])
    side = int(rows[["width", "height"]].min(axis=1).median())
    plain = AugmentConfig(rotation=0.0, scale=1.0, shift=0.0)
    data = StreamConfig(image_size=side // 2, augment=plain)
    needed = 8 * -(-data.image_size // 8)
    assert f"stored_size={needed} " in str(propose_stored_size(tiny_dataset, data))
    domain = rows["domain"].iloc[0]
    for near in (
        dataclasses.replace(data, image_size=side),
        dataclasses.replace(data, crop={domain: 0.5}),
        dataclasses.replace(data, augment=AugmentConfig(scale=2.0)),
    ):
        assert propose_stored_size(tiny_dataset, near) is None


def test_a_data_set_of_one_size_is_judged_by_that(tiny_dataset: Dataset) -> None:
    stored = tiny_dataset.metadata["settings"] | {"stored_size": 512}
    dataset = Dataset(tiny_dataset.root, tiny_dataset.metadata | {"settings": stored}, None)
    assert "stored at 512 px" in str(propose_stored_size(dataset, StreamConfig(image_size=96)))
