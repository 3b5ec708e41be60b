"""Every raw image of a source becomes a row."""

import hashlib
from collections import defaultdict

import numpy as np

from data_pipeline.catalog import SPLITS
from data_pipeline.ids import ID_BYTES
from data_pipeline.ingest.curate import Ratio, fold_of, group_name, split_of
from data_pipeline.ingest.file_names import on_disk
from data_pipeline.ingest.images import HASH_BYTES
from data_pipeline.ingest.pixel_range import EIGHT_BITS
from data_pipeline.ingest.scan import Known, scan
from data_pipeline.ingest.source_rows import SourceRows, Stored, type_numbers
from data_pipeline.parallel import Work
from data_pipeline.parts import release_memory
from data_pipeline.sources.declaration import SourceDeclaration
from data_pipeline.sources.raw_images import RawImages

_AT_ONCE = 32_768  # images that are Python objects at a time


def scan_source(
    declaration: SourceDeclaration, images: RawImages, ratio: Ratio, known: Known, work: Work
) -> tuple[SourceRows, dict[int, list[str]]]:
    """The rows of a source, unreadable and hidden images already excluded.

    Returns also bits of the range of the pixel values -> images, where they are not 8.
    """
    count = len(images)
    rows = SourceRows(
        declaration.name,
        images.table.select(["path", "source_label", "group", "domain", "microns_per_pixel"]),
        np.empty((count, ID_BYTES), np.uint8),
        type_numbers(images.table["cell_type"]),
        np.empty(count, np.int8),
        np.empty(count, np.int8),
        np.zeros((count, HASH_BYTES), np.uint8),
        np.full(count, -1, np.int32),
        np.full(count, -1, np.int32),
        np.ones(count, bool),
        {},
        Stored.nowhere(count),
    )
    ranges: dict[int, list[str]] = defaultdict(list)
    for start in range(0, count, _AT_ONCE):
        some = list(images[start : start + _AT_ONCE])
        paths = [on_disk(declaration.folder, image.path) for image in some]
        for row, (image, (file, facts)) in enumerate(zip(some, scan(paths, known, work), strict=True), start):
            identity = file or hashlib.sha256(image.path.encode()).hexdigest()  # a path that is no file has no bytes
            group = group_name(declaration.name, image.group, identity)
            rows.ids[row] = np.frombuffer(bytes.fromhex(identity), np.uint8)
            rows.splits[row], rows.folds[row] = SPLITS.index(split_of(group, ratio)), fold_of(group)
            if facts.perceptual_hash is not None and facts.width is not None and facts.height is not None:
                rows.hashes[row] = np.frombuffer(facts.perceptual_hash, np.uint8)
                rows.widths[row], rows.heights[row] = facts.width, facts.height
            if facts.problem or image.hidden:
                rows.kept[row] = False
                rows.reasons[row] = f"unreadable: {facts.problem}" if facts.problem else "hidden file"
            elif facts.bits != EIGHT_BITS:
                ranges[facts.bits].append(image.path)
    release_memory()
    return rows, ranges
