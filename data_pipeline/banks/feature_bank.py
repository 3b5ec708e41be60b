"""A bank of features: what a frozen network sees in each image, computed once for all heads that are fitted to it.

A bank is a Zarr v3 group in one zip file, named by the hash of everything its features depend on. The file is written
aside and renamed, so after a kill there is a whole bank or none.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from data_pipeline.disk import naming, replacing

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Features:
    """Features of images, and the row of each image in the stream's sample table."""

    values: NDArray[Any]  # float [n, d]
    rows: NDArray[np.int64]  # [n], of the stream's sample table


class FeatureBank:
    """The features of one pass of a network over the images of a stream."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """facts: everything that decides the features, of JSON's types."""
        self._facts = {"format": _FORMAT_VERSION, **facts}
        key = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()[:32]
        self.path = folder / f"features-{key}.zarr.zip"

    def read(self) -> Features | None:
        """The features; None if they are not there whole."""
        if not self.path.is_file():
            return None
        try:
            with zarr.storage.ZipStore(self.path, mode="r") as store:
                group = zarr.open_group(store, mode="r")
                return Features(group["values"][:], group["rows"][:])
        except Exception:  # Zarr and its codecs raise all kinds for damaged bytes: the bank is made again
            return None

    def write(self, features: Features) -> None:
        """Replace the bank atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), replacing(self.path) as temporary, zarr.storage.ZipStore(temporary, mode="w") as store:
            group = zarr.create_group(store, zarr_format=3, attributes=self._facts)
            group.create_array("values", data=features.values, chunks=(1024, features.values.shape[1]))
            group.create_array("rows", data=features.rows)
