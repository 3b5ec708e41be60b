"""If these fail, an expert is shown right labels as wrong ones, or ordinary images as unusual ones."""

import numpy as np

from trainer.metrics.label_quality import label_confidences, likely_label_errors, neighbour_distances
from trainer.tasks.classification.review.order import review_order


def test_confident_learning_by_hand() -> None:
    """Thresholds are the mean confidence in each label: 0.6 for the first type, 0.65 for the second."""
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.35, 0.65], [0.36, 0.64], [0.35, 0.65], [0.4, 0.6], [0.3, 0.7]])
    probabilities[2:4] = [[0.75, 0.25], [0.45, 0.55]]
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    assert likely_label_errors(probabilities, labels).tolist() == [False, True, *[False] * 5]
    assert label_confidences(probabilities, labels).tolist() == [0.9, 0.3, 0.75, 0.45, 0.65, 0.6, 0.7]


def test_a_type_without_images_is_no_ones_right_label() -> None:
    probabilities = np.array([[0.2, 0.1, 0.7], [0.3, 0.6, 0.1]])
    assert not likely_label_errors(probabilities, np.array([0, 1])).any()


def test_the_image_far_from_all_others_is_the_most_unusual() -> None:
    features = np.random.default_rng(0).normal([10, 0, 0], 0.5, (30, 3)).astype(np.float32)
    features[7] = [0, 9, 0]
    assert neighbour_distances(features).argmax() == 7
    assert len(neighbour_distances(features[:3])) == 3


def test_the_page_asks_first_what_is_most_worth_the_time_and_nothing_twice() -> None:
    ids = [f"{number}" for number in range(8)]
    labels = np.zeros(8, np.int64)
    labels[4:] = 1
    confidence = np.array([0.9, 0.05, 0.1, 0.8, 0.9, 0.6, 0.9, 0.9])
    probabilities = np.where(labels[:, None] == [0, 1], confidence[:, None], 1 - confidence[:, None])
    order = review_order(
        ids,
        labels,
        probabilities,
        np.arange(8.0),
        conflicts=[("a", "b"), ("c", "c")],
        copies=[(2, 3), (4, 6)],
        decided={"6", "b"},
    )
    asked = [(each.id, each.why, each.beside) for each in order]
    assert asked[:6] == [
        ("a", "conflict", "b"),
        ("c", "conflict", ""),
        ("1", "label", ""),
        ("2", "label", "3"),
        ("3", "pair", "2"),
        ("4", "pair", "6"),
    ]
    assert asked[6:] == [("5", "unsure", ""), ("7", "unusual", ""), ("0", "unsure", "")]
