"""If these fail, runs on other numbers of processes see other data, or some images are never seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.randomness import normal, permute, philox, uniform
from data_pipeline.stream.sampling import (
    ClassBalancedOrder,
    DomainBalancedOrder,
    UniformOrder,
    WindowedOrder,
    rank_slice,
)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_published_known_answers(word: int, expected: tuple[int, ...]) -> None:
    assert tuple(philox(word, np.uint64(word), np.uint64(word))) == expected


def test_draws_belong_to_their_position_whoever_asks() -> None:
    together = normal(7, np.arange(100), 5)
    apart = np.concatenate([normal(7, np.arange(start, 100, 3), 5) for start in range(3)])
    order = np.concatenate([np.arange(start, 100, 3) for start in range(3)])
    assert (together[order] == apart).all()
    assert (uniform(7, [3], 2) != uniform(8, [3], 2)).all()


def test_normal_draws_have_the_moments_of_a_normal_distribution() -> None:
    draws = normal(1, np.arange(50_000), 3)
    assert np.abs(draws.mean(axis=0)).max() < 0.02
    assert np.abs(draws.std(axis=0) - 1).max() < 0.02
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.02


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation_and_any_part_of_it_can_be_asked_for(size: int, key: int) -> None:
    whole = permute(key, np.arange(size), size)
    assert sorted(whole) == list(range(size))
    assert permute(key, size // 2, size) == whole[size // 2]


def test_permute_refuses_an_index_outside() -> None:
    with pytest.raises(IndexError, match="outside a permutation of 5"):
        permute(0, [5], 5)


def test_a_permutation_of_many_scatters_neighbours() -> None:
    """A weak permutation would show a batch of images of one slide."""
    places = permute(3, np.arange(10_000), 10_000)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05


@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.integers(0, 3), st.integers(1, 64))
def test_every_order_covers_an_epoch_once(shards: list[int], epoch: int, window: int) -> None:
    names = [f"shard-{number}" for number in shards]
    positions = np.arange(len(names))
    for order in (UniformOrder(len(names), 5), WindowedOrder(names, 5, window)):
        assert sorted(order.rows(epoch, positions)) == list(range(len(names)))
        half = positions[len(names) // 2 :]
        assert (order.rows(epoch, half) == order.rows(epoch, positions)[len(names) // 2 :]).all()


def test_epochs_differ() -> None:
    positions = np.arange(200)
    names = [f"shard-{index // 20}" for index in positions]
    for order in (UniformOrder(200, 5), WindowedOrder(names, 5, 50)):
        assert (order.rows(0, positions) != order.rows(1, positions)).any()


def test_windowed_order_reads_few_shards_at_a_time() -> None:
    """Otherwise a network store would be asked for all its shards at once."""
    names = [f"shard-{index // 100:02d}" for index in range(2000)]
    rows = WindowedOrder(names, 5, 200).rows(0, np.arange(2000))
    for start in range(0, 2000, 200):
        assert len({names[row] for row in rows[start : start + 200]}) <= 3


@given(
    st.lists(st.integers(0, 4), min_size=5, max_size=200),
    st.integers(0, 5),
)
def test_balanced_order_shows_every_class_equally_and_its_images_evenly(labels: list[int], epoch: int) -> None:
    order = ClassBalancedOrder(np.asarray(labels), 9)
    classes = len(set(labels))
    start = epoch * len(labels)
    rows = np.concatenate([order.rows(e, np.arange(len(labels))) for e in range(epoch + 1)])
    counts = np.bincount(np.asarray(labels)[rows], minlength=5)[sorted(set(labels))]
    assert counts.max() - counts.min() <= 1
    for label in set(labels):
        members = np.flatnonzero(np.asarray(labels) == label)
        shown = np.bincount(rows, minlength=len(labels))[members]
        assert shown.max() - shown.min() <= 1
    assert len(rows) == start + len(labels)
    assert classes == len(counts)


mixes = st.lists(st.integers(1, 40), min_size=4, max_size=4)


@given(mixes, mixes, st.integers(1, 90), st.integers(0, 3))
def test_orders_of_two_mixes_show_the_same_classes(one: list[int], other: list[int], size: int, seed: int) -> None:
    """Else the stain model learns to turn one cell type into another, or never sees some images."""
    labels = [np.repeat(np.arange(4), counts) for counts in (one, other)]
    orders = [ClassBalancedOrder(rows, seed, size) for rows in labels]
    drawn = [np.concatenate([order.rows(epoch, np.arange(size)) for epoch in range(4)]) for order in orders]
    assert (labels[0][drawn[0]] == labels[1][drawn[1]]).all()
    for rows, found in zip(labels, drawn, strict=True):
        shown = np.bincount(found, minlength=len(rows))
        for label in range(4):
            of_class = shown[rows == label]
            assert of_class.max() - of_class.min() <= 1, "an image came again before all of its class were seen"


@given(st.integers(0, 500), st.integers(1, 9))
def test_rank_slices_cover_a_batch_once_in_even_parts(size: int, world_size: int) -> None:
    slices = [rank_slice(size, rank, world_size) for rank in range(world_size)]
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(size))
    lengths = [part.stop - part.start for part in slices]
    assert max(lengths) - min(lengths) <= 1


cell_counts = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 8)), min_size=1, max_size=4)


@given(cell_counts, st.sampled_from([1.0, 2.5, 5.0, 100.0]), st.integers(0, 3))
def test_domains_are_balanced_within_types_but_no_image_is_repeated_too_often(
    counts: list[tuple[int, int]], most_repeats: float, seed: int
) -> None:
    """Else ten images of a second laboratory are learned by heart, or a laboratory's images are never seen."""
    labels = np.repeat(np.arange(2 * len(counts)) // 2, np.ravel(counts))
    domains = np.repeat(np.tile(["a", "b"], len(counts)), np.ravel(counts))
    order = DomainBalancedOrder(labels, domains, seed, most_repeats)
    size, epochs = order.epoch_size, 3
    drawn = np.bincount(np.concatenate([order.rows(epoch, np.arange(size)) for epoch in range(epochs)])) / epochs
    assert abs(size - len(labels)) <= 2 * len(counts)
    for label, (of_a, of_b) in enumerate(counts):
        cells = [drawn[(labels == label) & (domains == domain)] for domain in "ab"]
        for cell in cells:
            assert len(cell) == 0 or (cell.max() - cell.min()) * epochs <= 1 + 1e-9, "again before all were drawn"
            assert len(cell) == 0 or cell.sum() >= 1
        a, b = (float(cell.sum()) for cell in cells)
        assert a + b == pytest.approx(len(labels) / len(counts), abs=2), "types are drawn equally often"
        if of_b:
            share = min(max(of_a, of_b), most_repeats * of_a) / min(max(of_a, of_b), most_repeats * of_b)
            assert a == pytest.approx(share * b, abs=1 + share)


def test_a_part_of_a_domain_balanced_epoch_can_be_asked_for() -> None:
    """A resumed run begins in the middle of an epoch, and asks for one rank's positions only."""
    labels, domains = np.arange(90) % 3, np.array(["a"] * 80 + ["b"] * 10)
    order = DomainBalancedOrder(labels, domains, 7, 5.0)
    whole = order.rows(2, np.arange(order.epoch_size))
    assert (order.rows(2, np.arange(30, 60)) == whole[30:60]).all()
    assert (order.rows(1, np.arange(order.epoch_size)) != whole).any()


def test_rare_images_of_a_second_laboratory_are_drawn_as_often_as_the_cap_says() -> None:
    """The case that balance is for: 1,000 and 200 cells of one type, 400 and 10 of another."""
    labels = np.repeat([0, 0, 1, 1], [1000, 200, 400, 10])
    domains = np.repeat(["home", "away", "home", "away"], [1000, 200, 400, 10])
    order = DomainBalancedOrder(labels, domains, 0, 5.0)
    rows = order.rows(0, np.arange(order.epoch_size))
    away, home = (np.bincount(labels[rows[domains[rows] == domain]]).tolist() for domain in ("away", "home"))
    assert away == [403, 90]  # 805 of each type: half of them, and 50 of 450
    assert home == [403, 716]
