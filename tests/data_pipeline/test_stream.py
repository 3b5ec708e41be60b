"""If these fail, training on other processes, after a stop, or with another prefetch sees other images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.augment import AugmentConfig
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream import Stream, StreamConfig, Topology

TYPES = ("basophil", "eosinophil", "lymphocyte")
STAIN = AugmentConfig(dye_amount=0.2, channel_gain=0.2, channel_mixing=0.1, density_offset=0.05)


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Dataset) -> Dataset:
    return tiny_dataset


def open_stream(dataset: Dataset, rank: int = 0, world_size: int = 1, **changes: object) -> Stream:
    arguments: dict[str, object] = {"global_batch": 10, "micro_batch": None, "training": True, **changes}
    config = StreamConfig(
        image_size=24,
        augment=STAIN,
        threads=int(str(arguments.pop("threads", 1))),
        prefetch=int(str(arguments.pop("prefetch", 1))),
        order=arguments.pop("order", "global"),  # type: ignore[arg-type]
        sampling=arguments.pop("sampling", "uniform"),  # type: ignore[arg-type]
        window=16,
    )
    return Stream(
        dataset,
        config,
        splits=["train"] if arguments["training"] else ["validation", "test"],
        cell_types=TYPES,
        seed=4,
        topology=Topology(rank, world_size),
        **arguments,  # type: ignore[arg-type]
    )


def take(stream: Stream, batches: int, first: int = 0) -> dict[int, list[tuple[str, int, torch.Tensor]]]:
    """(id, label, pixels) of this process's samples, by global batch."""
    taken: dict[int, list[tuple[str, int, torch.Tensor]]] = {}
    for part in stream.read(first):
        if part.batch >= first + batches:
            break
        ids = stream.samples["id"].iloc[part.rows]
        entries = zip(ids, part.labels.tolist(), part.images.clone(), strict=True)
        taken.setdefault(part.batch, []).extend(entries)
    return taken


def assert_same(found: list[tuple[str, int, torch.Tensor]], expected: list[tuple[str, int, torch.Tensor]]) -> None:
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("order", ["global", "windowed"])
@pytest.mark.parametrize(("world_size", "threads", "prefetch", "micro_batch"), [(2, 2, 3, None), (3, 1, 2, 2)])
def test_processes_threads_and_prefetch_do_not_change_a_batch(
    dataset: Dataset, order: str, world_size: int, threads: int, prefetch: int, micro_batch: int | None
) -> None:
    """Ids, augmentation and pixels, over the boundary of an epoch."""
    alone = open_stream(dataset, order=order)
    batches = alone.batches_per_epoch + 2
    expected = take(alone, batches)
    apart = [
        take(
            open_stream(
                dataset,
                rank,
                world_size,
                order=order,
                threads=threads,
                prefetch=prefetch,
                micro_batch=micro_batch,
            ),
            batches,
        )
        for rank in range(world_size)
    ]
    for batch in range(batches):
        assert_same([entry for part in apart for entry in part[batch]], expected[batch])


@pytest.mark.parametrize("order", ["global", "windowed"])
def test_a_stream_taken_up_anywhere_goes_on_as_if_never_stopped(dataset: Dataset, order: str) -> None:
    whole = take(open_stream(dataset, order=order), 12)
    for first in (1, 5, 8):
        rest = take(open_stream(dataset, order=order, prefetch=2), 12 - first, first)
        for batch in range(first, 12):
            assert_same(rest[batch], whole[batch])


@pytest.mark.parametrize("order", ["global", "windowed"])
def test_an_epoch_shows_no_image_twice_and_drops_less_than_a_batch(dataset: Dataset, order: str) -> None:
    stream = open_stream(dataset, order=order)
    for epoch in range(2):
        first = epoch * stream.batches_per_epoch
        ids = [name for batch in range(stream.batches_per_epoch) for name in stream.ids(first + batch)]
        assert len(set(ids)) == len(ids)
        assert len(stream.samples) - len(ids) < stream.global_batch


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_scoring_sees_every_image_exactly_once_unaugmented(dataset: Dataset, world_size: int) -> None:
    streams = [open_stream(dataset, rank, world_size, training=False, micro_batch=4) for rank in range(world_size)]
    parts = [part for stream in streams for part in stream.read()]
    rows = np.concatenate([part.rows for part in parts])
    assert sorted(rows) == list(range(len(streams[0].samples)))
    again = {
        int(row): image
        for part in open_stream(dataset, training=False).read()
        for row, image in zip(part.rows, part.images.clone(), strict=True)
    }
    for part in streams[0].read():
        assert all(torch.equal(again[int(row)], image) for row, image in zip(part.rows, part.images, strict=True))


def test_a_repeated_image_is_augmented_differently_each_time(dataset: Dataset) -> None:
    stream = open_stream(dataset, sampling="class_balanced")
    seen: dict[str, list[torch.Tensor]] = {}
    for entries in take(stream, 2 * stream.batches_per_epoch).values():
        for name, _, image in entries:
            seen.setdefault(name, []).append(image)
    repeated = [images for images in seen.values() if len(images) > 1]
    assert repeated
    assert all(not torch.equal(images[0], images[1]) for images in repeated)


def test_balanced_batches_hold_every_type_equally(dataset: Dataset) -> None:
    stream = open_stream(dataset, sampling="class_balanced", global_batch=12)
    counts = np.bincount(stream.labels[stream.rows(3)], minlength=3)
    assert counts.tolist() == [4, 4, 4]


def test_images_handed_over_stay_as_they_were_while_later_ones_are_made(dataset: Dataset) -> None:
    """DALI must not write the next batch over a tensor that is still in use."""
    stream = open_stream(dataset, prefetch=2).read()
    kept, copies = [], []
    for _ in range(6):
        part = next(stream)
        kept.append(part.images)
        copies.append(part.images.clone())
    assert all(torch.equal(now, then) for now, then in zip(kept, copies, strict=True))


def test_pixels_are_normalised_and_labels_point_into_the_types(dataset: Dataset) -> None:
    part = next(open_stream(dataset, training=False).read())
    assert part.images.dtype == torch.float32
    assert part.images.shape[1:] == (3, 24, 24)
    assert -1.001 <= part.images.min() < 0 < part.images.max() <= 1.001
    stream = open_stream(dataset, training=False)
    assert [TYPES[label] for label in part.labels] == stream.samples["cell_type"].iloc[part.rows].tolist()


def test_a_flipped_byte_in_a_shard_is_named_not_trained_on(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.root, tmp_path / "copy")
    copy = Dataset.open(tmp_path / "copy")
    row = copy.samples(splits=["train"]).iloc[0]
    shard = copy.shard_path(row["shard"])
    content = bytearray(shard.read_bytes())
    content[int(row["offset"]) + int(row["size"]) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    stream = open_stream(copy)
    with pytest.raises(UserError, match=f"{row['shard']}: the bytes of sample {row['id']}"):
        for _, _part in zip(range(stream.batches_per_epoch), stream.read(), strict=False):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 5000}, "global_batch=5000 is more than"),
        ({"global_batch": 3, "micro_batch": 1, "world_size": 2}, "cannot be cut into 2 micro-batches"),
        ({"sampling": "class_balanced", "order": "windowed"}, "needs data.order=global"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(
    dataset: Dataset, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_stream(dataset, **changes)  # type: ignore[arg-type]


def test_an_empty_selection_is_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="no image in"):
        Stream(dataset, StreamConfig(), splits=["train"], cell_types=("smudge cell",), global_batch=4, training=True)
