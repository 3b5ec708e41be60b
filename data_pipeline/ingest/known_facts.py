"""What a data set that is built again knows of raw files, so that none is decoded twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.catalog import Dataset
from data_pipeline.columns import sorted_columns
from data_pipeline.ids import Ids, from_hex
from data_pipeline.ingest.images import DECODING, HASH_BYTES, ImageFacts


class KnownFacts:
    """Facts of the files of one source, by id; nothing if files are decoded otherwise now. About 80 bytes a file."""

    def __init__(self, old: Dataset | None, source: str) -> None:
        self._ids: Ids = np.empty((0, 32), np.uint8)
        if old is None or old.metadata.get("decoding") != DECODING:
            return
        numbers = {"": 0}  # of problems

        def problems(part: pa.RecordBatch) -> npt.NDArray[np.int32]:
            # Of a file with a hash the reason says nothing about the file.
            reasons = pc.if_else(pc.is_valid(part["perceptual_hash"]), "", part["reason"]).dictionary_encode()
            texts = (reason.partition(": ")[2] for reason in reasons.dictionary.to_pylist())
            return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int32)[reasons.indices]

        def pixels(part: pa.RecordBatch, name: str) -> npt.NDArray[np.int32]:
            return np.asarray(pc.fill_null(part[name], -1).to_numpy(zero_copy_only=False), np.int32)

        columns = sorted_columns(
            old.batches(["id", "perceptual_hash", "width", "height", "reason"], source),
            old.row_count,
            {
                "hashes": _hashes,
                "widths": lambda part: pixels(part, "width"),
                "heights": lambda part: pixels(part, "height"),
                "problems": problems,
            },
        )
        if not columns:  # a new source
            return
        self._ids, self._columns, self._problems = columns.pop("ids"), columns, list(numbers)
        self._keys = _first_words(self._ids)

    def __call__(self, ids: Sequence[str]) -> dict[str, ImageFacts]:
        """The facts of those of these ids that are known."""
        if not len(self._ids) or not ids:
            return {}
        sought = from_hex(pa.array(ids, pa.string()))
        place = np.searchsorted(self._keys, _first_words(sought)).clip(max=len(self._ids) - 1)
        found = (self._ids[place] == sought).all(axis=1)
        return {ids[row]: self._facts(int(place[row])) for row in np.flatnonzero(found).tolist()}

    def _facts(self, place: int) -> ImageFacts:
        width, height, problem = (int(self._columns[name][place]) for name in ("widths", "heights", "problems"))
        if width < 0:
            return ImageFacts(None, None, None, self._problems[problem])
        return ImageFacts(width, height, self._columns["hashes"][place].tobytes(), "")


def _hashes(part: pa.RecordBatch) -> npt.NDArray[np.uint8]:
    """Perceptual hashes, uint8 [n, HASH_BYTES]; zeros for none."""
    hashes = pc.fill_null(part["perceptual_hash"], bytes(HASH_BYTES))
    content = np.frombuffer(hashes.buffers()[1], np.uint8)[hashes.offset * HASH_BYTES :]
    return content[: len(hashes) * HASH_BYTES].reshape(-1, HASH_BYTES)


def _first_words(ids: Ids) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)
