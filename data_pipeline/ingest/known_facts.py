"""What a data set that is built again knows of raw files, so that none is decoded twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.catalog import Dataset
from data_pipeline.ids import Ids, from_hex, sort_order
from data_pipeline.ingest.images import DECODING, ImageFacts
from data_pipeline.parts import release_memory

_COLUMNS = ("perceptual_hash", "width", "height", "reason")


class KnownFacts:
    """Facts of the files of one source, by id; nothing if files are decoded otherwise now. About 90 bytes a file."""

    def __init__(self, old: Dataset | None, source: str) -> None:
        self._ids: Ids = np.empty((0, 32), np.uint8)
        if old is None or old.metadata.get("decoding") != DECODING:
            return
        ids, facts = [self._ids], []
        for part in old.batches(["id", *_COLUMNS], source):
            ids.append(from_hex(part["id"]))
            # Of a file with a hash the reason says nothing about the file.
            reason = pc.if_else(pc.is_valid(part["perceptual_hash"]), "", part["reason"])
            facts.append(part.select(_COLUMNS[:3]).append_column("reason", reason.dictionary_encode()))
        if not facts:
            return
        self._facts = pa.Table.from_batches(facts).unify_dictionaries().combine_chunks()
        del facts
        joined = np.concatenate(ids)
        del ids
        self._place = sort_order(joined)
        self._ids = joined[self._place]
        self._keys = _first_words(self._ids)
        del joined
        release_memory()

    def __call__(self, ids: Sequence[str]) -> dict[str, ImageFacts]:
        """The facts of those of these ids that are known."""
        if not len(self._ids) or not ids:
            return {}
        sought = from_hex(pa.array(ids, pa.string()))
        place = np.searchsorted(self._keys, _first_words(sought)).clip(max=len(self._ids) - 1)
        found = (self._ids[place] == sought).all(axis=1)
        rows = self._facts.take(self._place[place[found]]).to_pylist()
        return {
            identity: ImageFacts(row["width"], row["height"], row["perceptual_hash"], row["reason"].partition(": ")[2])
            for identity, row in zip(np.array(ids, object)[found], rows, strict=True)
        }


def _first_words(ids: Ids) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)
