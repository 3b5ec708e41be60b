"""In which order an expert looks at images: what is most worth the time first."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.metrics.label_quality import label_confidences, likely_label_errors

Why = Literal["conflict", "label", "pair", "unsure", "unusual"]


@dataclass(frozen=True)
class Asked:
    """An image on the review page."""

    id: str
    why: Why  # it is shown
    beside: str = ""  # id of the image shown beside it


def review_order(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    distances: NDArray[np.float32],
    *,
    conflicts: Iterable[tuple[str, str]] = (),
    copies: Iterable[tuple[int, int]] = (),
    decided: Collection[str] = (),
) -> list[Asked]:
    """All images but those that experts have decided about, each once.

    First images with two labels (conflicts: ids, twice the same for one file), labels that are likely wrong, the most
    suspect first, and near duplicates (copies: rows earlier, later). Then in turn the image with the least confident
    prediction and the one that is furthest from its neighbours.

    labels [n], out-of-fold probabilities [n, types] and distances [n] to the neighbours are of the images `ids`.
    """
    order: dict[str, Asked] = {}
    beside: dict[str, str] = {}

    def ask(image: str, why: Why) -> None:
        if image not in decided:
            order.setdefault(image, Asked(image, why, beside.get(image, "")))

    pairs = [(ids[earlier], ids[later]) for earlier, later in copies]
    conflicts = list(conflicts)
    for one, other in [*conflicts, *pairs]:
        if one != other:
            beside.setdefault(one, other)
            beside.setdefault(other, one)
    for pair in conflicts:
        for image in pair:
            ask(image, "conflict")
    # Confident learning tells how many labels are wrong; which, the probabilities of the labels tell better.
    count = int(likely_label_errors(probabilities, labels).sum())
    for row in label_confidences(probabilities, labels).argsort(kind="stable")[:count]:
        ask(ids[row], "label")
    for pair in pairs:
        for image in pair:
            ask(image, "pair")
    unsure = probabilities.max(axis=1).argsort(kind="stable")
    unusual = (-distances).argsort(kind="stable")
    for row, why in chain.from_iterable(zip(_named(unsure, "unsure"), _named(unusual, "unusual"), strict=True)):
        ask(ids[row], why)
    return list(order.values())


def _named(rows: NDArray[np.int64], why: Why) -> list[tuple[int, Why]]:
    return [(int(row), why) for row in rows]
