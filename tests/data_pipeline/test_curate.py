"""If these fail, test images leak into training, or good images are lost."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.catalog import FOLDS, Sample, content_hash
from data_pipeline.errors import UserError
from data_pipeline.ingest.curate import (
    DEFAULT_RATIO,
    Exclusion,
    apply_exclusions,
    check_ratio,
    duplicate_sets,
    fold_of,
    group_name,
    read_exclusions,
    settle,
    split_of,
)
from data_pipeline.ingest.duplicates import near_components, near_pairs

# Chosen by looking: the split of each is stated in the tests that use it.
TRAIN_GROUP, VALIDATION_GROUP, TEST_GROUP = (
    next(name for name in map(str, range(1000)) if split_of(name) == split) for split in ("train", "validation", "test")
)


def sample(
    path: str,
    cell_type: str = "basophil",
    *,
    source: str = "first",
    group: str = TRAIN_GROUP,
    bits: int = 0,
    content: str = "",
) -> Sample:
    identity = hashlib.sha256((content or source + path).encode()).hexdigest()
    return Sample(
        id=identity,
        source=source,
        domain="giemsa",
        path=path,
        source_label=cell_type,
        cell_type=cell_type,
        group=group,
        split=split_of(group),
        fold=fold_of(group),
        perceptual_hash=bits.to_bytes(32),
    )


def exclude_duplicates(samples: list[Sample], source_order: list[str]) -> None:
    """As a build does, for samples that are objects."""
    rows = [row for row in samples if row.kept and row.perceptual_hash is not None]
    hashes = np.frombuffer(b"".join(row.perceptual_hash or b"" for row in rows), np.uint8).reshape(len(rows), -1)
    for members in duplicate_sets(hashes):
        settle([rows[member] for member in members], {name: place for place, name in enumerate(source_order)})


def kept(samples: list[Sample]) -> list[str]:
    return [row.path for row in samples if row.kept]


FAR = int("f0" * 32, 16)


def test_the_hash_of_what_was_built_before_stays_what_it_was() -> None:
    """Runs, stages and derived data sets know a data set by it."""
    rows = [sample("a.png"), sample("ä.png", "monocyte", bits=FAR), sample("b.png")]
    for number, row in enumerate(rows):
        row.shard, row.key, row.offset, row.size, row.crc32 = (
            "first-train-root-0.tar",
            row.id,
            512 * number,
            100,
            number,
        )
    rows[0].microns_per_pixel = 0.1
    rows[2].exclude("hidden file")
    assert content_hash(rows) == "245be553370e5bf69896a1fd0d22f681496d84b1a2d87f62e84709a0661bb79e"


@given(st.sets(st.text(), min_size=1), st.sets(st.text()))
def test_more_data_never_moves_a_group(old: set[str], new: set[str]) -> None:
    before = {group: (split_of(group), fold_of(group)) for group in old}
    after = {group: (split_of(group), fold_of(group)) for group in sorted(old | new, reverse=True)}
    assert before == {group: after[group] for group in old}


@given(st.text(), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_training_share_only_takes_groups_in(group: str, grown: float, validation: float) -> None:
    smaller, larger = (0.3, validation, 0.7 - validation), (0.3 + grown, validation, 0.7 - grown - validation)
    if split_of(group, smaller) == "train":
        assert split_of(group, larger) == "train"


def test_counts_are_near_the_ratio_and_folds_are_independent_of_it() -> None:
    groups = [f"patient {number}" for number in range(20_000)]
    counts = Counter(map(split_of, groups))
    for split, share in zip(("train", "validation", "test"), DEFAULT_RATIO, strict=True):
        assert abs(counts[split] / len(groups) - share) < 0.012
    folds = Counter(fold_of(group) for group in groups if split_of(group) == "test")
    assert set(folds) == set(range(FOLDS))
    assert max(folds.values()) / min(folds.values()) < 1.15


def test_splits_of_a_release_are_those_of_the_next() -> None:
    """Frozen values: a data set built years ago must not find its test images in training."""
    groups = ["", "munich/BAS_0053", "clinic/patient 7", "0" * 64]
    frozen = [("test", 3), ("train", 2), ("train", 1), ("train", 4)]
    assert [(split_of(group), fold_of(group)) for group in groups] == frozen


def test_patients_belong_to_their_source() -> None:
    assert group_name("a", "patient 7", "id") != group_name("b", "patient 7", "id")
    assert group_name("a", "", "id") == "id"


@pytest.mark.parametrize("ratio", [(0.5, 0.5), (0.7, 0.7, -0.4), (0.6, 0.1, 0.1)])
def test_a_ratio_that_is_no_whole_is_refused(ratio: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="add up to 1"):
        check_ratio(ratio)


def test_inside_a_split_the_first_declared_stays() -> None:
    rows = [sample("b"), sample("a"), sample("a", source="second"), sample("far", bits=FAR)]
    exclude_duplicates(rows, ["second", "first"])
    assert kept(rows) == ["a", "far"]
    assert rows[2].kept
    assert rows[0].reason == "near duplicate: of second:a"


def test_across_splits_the_training_side_goes() -> None:
    rows = [sample("a"), sample("b", group=TEST_GROUP, bits=0b11), sample("c", group=VALIDATION_GROUP)]
    exclude_duplicates(rows, ["first"])
    assert kept(rows) == ["b"]


def test_a_chain_of_near_duplicates_leaves_one() -> None:
    rows = [sample(str(number), bits=(1 << (12 * number)) - 1) for number in range(4)]
    exclude_duplicates(rows, ["first"])
    assert kept(rows) == ["0"], "the ends are 36 bits apart, yet the same image in steps of 12"


def test_a_label_is_not_lost_to_an_unlabelled_copy() -> None:
    rows = [sample("a", ""), sample("b", "monocyte")]
    exclude_duplicates(rows, ["first"])
    assert kept(rows) == ["b"]


def test_one_image_under_two_labels_is_excluded_twice() -> None:
    rows = [
        sample("EO_225902", "eosinophil", content="same"),
        sample("BNE_191112", "neutrophil", content="same"),
        sample("copy", ""),
    ]
    exclude_duplicates(rows, ["first"])
    assert kept(rows) == []
    assert rows[0].path == "EO_225902"
    assert rows[0].reason == "conflicting labels: neutrophil at first:BNE_191112"
    assert rows[1].reason == "conflicting labels: eosinophil at first:EO_225902"


def test_an_expert_settles_a_conflict_of_labels() -> None:
    rows = [sample("a", "eosinophil", content="same"), sample("b", "neutrophil", content="same")]
    assert apply_exclusions(rows, [Exclusion(path="a", reason="it is a band")]) == []
    exclude_duplicates(rows, ["first"])
    assert kept(rows) == ["b"]
    assert rows[0].reason == "expert's list: it is a band"


def test_lines_of_the_expert_that_match_nothing_come_back() -> None:
    rows = [sample("a"), sample("a", source="second")]
    by_id = Exclusion(id=rows[1].id)
    wrong = [Exclusion(path="a", source="third"), Exclusion(path="c"), Exclusion(id=rows[1].id, path="b")]
    assert apply_exclusions(rows, [by_id, *wrong]) == wrong
    assert [row.kept for row in rows] == [True, False]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file\na.jpg\n", "line 2: no image named"),
        ("id,reason\nabc,blurred\n", "line 2: 'abc' is no id"),
        ("path,reason\n,blurred\n", "line 2: no image named"),
    ],
)
def test_an_exclusion_list_that_is_wrong_names_the_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "exclude.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_exclusions(path)
    assert says in str(caught.value)
    assert "exclude.csv" in str(caught.value)


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=24),
    st.lists(st.tuples(st.integers(0, 23), st.sets(st.integers(0, 63), max_size=9)), max_size=24),
    st.integers(3, 7),
    st.sampled_from([1, 2]),
)
def test_no_near_pair_is_missed_and_none_is_invented(
    seeds: list[int], changes: list[tuple[int, set[int]]], distance: int, agreeing: int
) -> None:
    """Against all pairs: an escaped near duplicate is a test image in training."""
    values = seeds + [seeds[number % len(seeds)] ^ sum(1 << bit for bit in bits) for number, bits in changes]
    hashes = np.array([np.frombuffer(value.to_bytes(8), np.uint8) for value in values])
    found = {
        (min(pair), max(pair))
        for one, other in near_pairs(hashes, distance, agreeing)
        for pair in zip(one, other, strict=True)
    }
    expected = {
        (left, right)
        for left in range(len(values))
        for right in range(left + 1, len(values))
        if (values[left] ^ values[right]).bit_count() <= distance
    }
    assert found == expected
    component = near_components(hashes, distance)
    assert all(component[left] == component[right] for left, right in expected)
    joined = list(range(len(values)))
    for left, right in expected:
        joined = [joined[left] if number == joined[right] else number for number in joined]
    assert len(set(component.tolist())) == len(set(joined))


def test_a_thousand_equal_blank_images_are_no_half_million_pairs() -> None:
    hashes = np.zeros((200_000, 32), np.uint8)
    assert set(near_components(hashes, 16).tolist()) == {0}


def test_one_cell_in_two_stains_stays_in_both() -> None:
    """Pairs of stains are what stain normalisation is measured on; a second one of a stain goes all the same."""
    rows = [sample("a"), sample("b"), sample("c"), sample("d", group=TEST_GROUP, bits=FAR)]
    rows[1].domain = "violet"
    rows += [sample("e", content="firsta"), sample("f", bits=FAR)]
    rows[4].domain, rows[5].domain = "scanned", "violet"
    exclude_duplicates(rows, ["first"])
    assert kept(rows) == ["a", "b", "d"]
    assert rows[2].reason == "near duplicate: of first:a"
    assert rows[4].reason == "duplicate: of first:a"
    assert rows[5].reason == "near duplicate: of first:d"
