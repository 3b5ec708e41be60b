"""The page on which an expert looks at images and decides: right, wrong and what it is, or left out and why.

One HTML file with everything in it, `review.html`. It talks to no server. Decisions are kept in the browser and saved
as the CSV that `build_shards.py review=` reads.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.cell_types import CELL_TYPES
from trainer.reports.page import fill_template

SIDE = 360  # pixels of a picture, at most; about 12 kB
# Why an image is left out; the page also takes the expert's own words.
REASONS = ("no cell", "out of focus", "several cells", "damaged or artefact", "cannot be named", "duplicate")
_KEYS = "1234567890vw"  # of the cell types


@dataclass(frozen=True)
class ReviewImage:
    """An image of the data set."""

    id: str
    source: str
    path: str
    label: str  # its cell type; '' where it carries two
    picture: str  # data URI, '' where it cannot be read


@dataclass(frozen=True)
class ReviewItem:
    """An image that an expert is asked about."""

    image: ReviewImage
    asked: str  # why it is shown, a sentence
    answer: str  # what a classifier says, '' for nothing
    beside: ReviewImage | None  # shown beside it


def write_review_page(
    path: Path, items: Sequence[ReviewItem], *, dataset: str, content_hash: str, present: Sequence[str]
) -> Path:
    """Write the page; returns path.

    dataset: its name, for the title. content_hash: decisions are kept in the browser under it, so that another page
    of the same data set has them too. present: cell types of the data set, which have the first keys.
    """
    types = [*present, *(name for name in CELL_TYPES if name not in present)]
    return fill_template(
        path,
        "review.html",
        dataset=dataset,
        content={
            "items": list(map(asdict, items)),
            "types": list(zip(_KEYS, types, strict=True)),
            "reasons": REASONS,
            "store": f"review {content_hash}",
        },
    )
