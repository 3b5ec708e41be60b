"""If these fail, training on other processes, after a stop, or with another prefetch sees other images."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.augment import AugmentConfig
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.file_stream import FileStream
from data_pipeline.stream.stream import Stream, Topology
from data_pipeline.threads import Division
from tests.data_pipeline.raw_images import folder_source, write_classes

TYPES = ("basophil", "eosinophil", "lymphocyte")
STAIN = AugmentConfig(dye_amount=0.2, channel_gain=0.2, channel_mixing=0.1, density_offset=0.05)


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Dataset) -> Dataset:
    return tiny_dataset


@pytest.fixture(scope="module")
def two_domains(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same types in opposite mixes, all for training; one type in one domain alone."""
    folder = tmp_path_factory.mktemp("domains")
    first = write_classes(folder / "a", {"basophil": 3, "eosinophil": 17, "lymphocyte": 1, "platelet": 2}, 0)
    second = write_classes(folder / "b", {"basophil": 11, "eosinophil": 1, "lymphocyte": 6}, 100)
    sources = [folder_source(first, "a", domain="violet"), folder_source(second, "b", domain="pink")]
    build_dataset(folder / "data", sources, ratio=(1, 0, 0), progress=False)
    return Dataset.open(folder / "data")


def open_domain(dataset: Dataset, domain: str, epoch_size: int | None, batch: int, **changes: object) -> Stream:
    """A class-balanced stream of one domain."""
    arguments: dict[str, object] = {"cell_types": TYPES, "seed": 4, **changes}
    return Stream(
        dataset,
        StreamConfig(image_size=24, domains=[domain], sampling="class_balanced", threads=1),
        splits=["train"],
        global_batch=batch,
        training=True,
        epoch_size=epoch_size,
        **arguments,  # type: ignore[arg-type]
    )


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
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    world_size: int,
    threads: int,
    prefetch: int,
    micro_batch: int | None,
) -> None:
    """Ids, augmentation and pixels, over the boundary of an epoch."""
    alone = open_stream(dataset, order=order)
    batches = alone.batches_per_epoch + 2
    expected = take(alone, batches)
    # Where there is a GPU, threads decode ahead.
    monkeypatch.setattr(
        "data_pipeline.stream.pipeline.divide", lambda share, on_gpu: Division(1, threads, overlap=True)
    )
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


def test_domain_balanced_batches_hold_every_type_of_every_domain_equally(two_domains: Dataset) -> None:
    config = StreamConfig(image_size=24, sampling="domain_balanced", threads=1)
    stream = Stream(two_domains, config, splits=["train"], cell_types=TYPES, global_batch=13, training=True)
    assert stream.batches_per_epoch == 3  # of 39 images: 3 and 11, 17 and 1, 1 and 6 of a type
    drawn = stream.samples.iloc[np.concatenate([stream.rows(batch) for batch in range(3)])]
    counts = drawn.groupby(["cell_type", "domain"]).size()
    assert len(counts) == 6
    assert counts.between(4, 7).all()


@given(st.integers(2, 9), st.integers(9, 60), st.integers(1, 3), st.integers(0, 5))
def test_two_domains_show_the_same_type_at_the_same_position(
    two_domains: Dataset, batch: int, epoch_size: int, world_size: int, seed: int
) -> None:
    """Else training stains rewards turning one cell type into another; over epochs, on any number of processes."""
    world_size = min(world_size, batch)
    shown: dict[str, list[str]] = {}
    for domain in ("violet", "pink"):
        ranks = [
            open_domain(two_domains, domain, epoch_size, batch, seed=seed, topology=Topology(rank, world_size))
            for rank in range(world_size)
        ]
        assert ranks[0].batches_per_epoch == epoch_size // batch
        batches = range(3 * ranks[0].batches_per_epoch)
        parts = [part for number in batches for stream in ranks for part in stream.parts_of(number)]
        rows, positions = (np.concatenate(column) for column in zip(*parts, strict=True))
        assert positions.tolist() == list(range(len(batches) * batch))
        shown[domain] = ranks[0].samples["cell_type"].iloc[rows].tolist()
        times = np.bincount(rows, minlength=len(ranks[0].samples))
        for label in range(len(TYPES)):
            of_type = times[ranks[0].labels == label]
            assert of_type.max() - of_type.min() <= 1, "an image came again before all of its type were seen"
    assert shown["violet"] == shown["pink"]


def test_a_type_that_one_domain_lacks_cannot_be_matched(two_domains: Dataset) -> None:
    types = (*TYPES, "platelet")
    open_domain(two_domains, "violet", 20, 4, cell_types=types)
    with pytest.raises(UserError, match="no image of platelet in pink, split train"):
        open_domain(two_domains, "pink", 20, 4, cell_types=types)
    with pytest.raises(UserError, match="global_batch=30 is more than the 20"):
        open_domain(two_domains, "pink", 20, 30)
    alone = open_domain(two_domains, "pink", None, 4, cell_types=types)
    assert alone.batches_per_epoch == 18 // 4, "without a match the images decide"


def test_every_image_tells_its_place_in_the_global_order(dataset: Dataset) -> None:
    """What a trainer draws for an image is keyed by it, whatever the number of processes."""
    found: dict[int, str] = {}
    for rank in range(2):
        stream = open_stream(dataset, rank, 2, micro_batch=2)
        for part in stream.read(3):
            if part.batch == 5:
                break
            found |= dict(zip(part.positions.tolist(), stream.samples["id"].iloc[part.rows], strict=True))
    expected = open_stream(dataset)
    assert [found[position] for position in range(30, 50)] == [*expected.ids(3), *expected.ids(4)]


def scored(dataset: Dataset, crop: dict[str, float]) -> dict[str, torch.Tensor]:
    config = StreamConfig(image_size=24, crop=crop, threads=1)
    stream = Stream(dataset, config, splits=["train"], cell_types=TYPES, global_batch=8, training=False)
    ids = stream.samples["id"]
    return {
        ids[row]: image for part in stream.read() for row, image in zip(part.rows, part.images.clone(), strict=True)
    }


def test_a_crop_acts_on_its_domain_alone_in_scoring_and_training(two_domains: Dataset) -> None:
    whole, cropped = scored(two_domains, {}), scored(two_domains, {"pink": 0.6, "violet": 1.0})
    domains = two_domains.samples().set_index("id")["domain"]
    for identity, image in cropped.items():
        assert torch.equal(image, whole[identity]) == (domains[identity] == "violet")
    still = AugmentConfig(flip=False, rotation=0, scale=1, shift=0)
    config = StreamConfig(image_size=24, crop={"pink": 0.6}, threads=1, augment=still)
    stream = Stream(two_domains, config, splits=["train"], cell_types=TYPES, global_batch=8, training=True)
    part = next(stream.read())
    for row, image in zip(part.rows, part.images, strict=True):
        assert (image - cropped[stream.samples["id"][row]]).abs().max() < 0.01, "training saw another part"


def test_a_file_is_cropped_as_its_domain_is(two_domains: Dataset) -> None:
    expected = scored(two_domains, {"pink": 0.6})
    rows = two_domains.samples(domains=["pink"], cell_types=TYPES)
    paths = [two_domains.root.parent / "b" / path for path in rows["path"]]
    storage = ShardSettings(**two_domains.metadata["settings"])
    config = StreamConfig(image_size=24, threads=1)
    read = FileStream(paths, storage, config, 5, Topology(), crop=0.6).read()
    for part in read:
        assert (part.positions == part.rows).all()
        for row, image in zip(part.rows, part.images, strict=True):
            assert torch.equal(image, expected[rows["id"][row]])
    with pytest.raises(ValueError, match=r"crop=0\.0"):
        FileStream(paths, storage, config, 5, Topology(), crop=0.0)


def test_a_crop_that_cannot_be_is_refused(two_domains: Dataset) -> None:
    with pytest.raises(UserError, match=r"data\.crop and .*: no domain .munich. here; use one of pink, violet"):
        scored(two_domains, {"munich": 0.5})
    for share in (0.0, -0.5, 1.01):
        with pytest.raises(ValueError, match=r"data\.crop\.pink=.*: must be above 0 and at most 1"):
            StreamConfig(crop={"pink": share})
    config = StreamConfig(crop={"violet": 0.5}, domains=["pink"])
    Stream(two_domains, config, splits=["train"], cell_types=TYPES, global_batch=4, training=True)


def test_images_handed_over_stay_as_they_were_while_later_ones_are_made(dataset: Dataset) -> None:
    """DALI must not write the next batch over a tensor that is still in use."""
    stream = open_stream(dataset, prefetch=2).read()
    kept, copies = [], []
    for _ in range(6):
        part = next(stream)
        kept.append(part.images)
        copies.append(part.images.clone())
    assert all(torch.equal(now, then) for now, then in zip(kept, copies, strict=True))


def test_memory_does_not_grow_with_the_batches_read(dataset: Dataset) -> None:
    """Else a long training ends out of memory."""
    sizes = []
    for part in open_stream(dataset).read():
        if part.batch % 200 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        if part.batch == 600:
            break
    of_all_images = 400 * part.images.nbytes
    assert sizes[3] - sizes[1] < of_all_images / 3


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
        ({"sampling": "domain_balanced", "order": "windowed"}, "sampling=domain_balanced draws from all shards"),
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
