"""A bank of generated images: a Zarr v3 group that grows at its end and can be read only when finished.

Image `index` of cell type `t` is row `index * len(cell_types) + t` of every array, so a larger bank begins with the
rows of a smaller one. `bank.json` is the commit point: the number of rows, their content hash and the scores of all of
them. A row's SHA-256 is written last, so a row that has one is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from filelock import Timeout

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import file_lock, naming, replace_through, sync
from data_pipeline.errors import UserError

FORMAT_VERSION = 1
MANIFEST_FILE = "bank.json"
LOCK_FILE = ".lock"
# Images of each type in one shard of the arrays: the unit of work, lost when a process is killed.
INDICES_PER_SHARD = 64
ARRAYS = ("images", "latents", "labels", "sha256")
# Names of banks and scores become file names (shards, arrays).
NAME = re.compile(r"[A-Za-z0-9_.-]+")

_GROUP_FILE = "zarr.json"
_SCORES = "scores"


@dataclass(frozen=True)
class BankFacts:
    """What all images of a bank share."""

    made_by: dict[str, Any]  # the generator's name, checkpoint, dataset_hash and config, and the seed, as JSON
    domain: str  # stain of the images
    cell_types: tuple[str, ...]
    image_size: int  # side in pixels
    latent_size: int  # elements of a latent vector

    @property
    def generator(self) -> dict[str, Any]:
        """`made_by` without the config, which names folders; the checkpoint's hash stands for it."""
        return {name: value for name, value in self.made_by.items() if name != "config"}

    @property
    def identity(self) -> str:
        """SHA-256 hex of what decides the images."""
        decisive = {**asdict(self), "made_by": self.generator}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


class ImageBank:
    """A finished bank, opened for reading."""

    def __init__(self, root: Path, facts: BankFacts, manifest: dict[str, Any]) -> None:
        self.root = root
        self.facts = facts
        self._count = int(manifest["images"])
        self.content_hash = str(manifest["content_hash"])
        self._arrays = open_arrays(root)
        self.labels: npt.NDArray[np.int64] = self._arrays["labels"][: self._count]
        self.digests: npt.NDArray[np.uint8] = self._arrays["sha256"][: self._count]
        self.scores = {name: self._read_scores(entry) for name, entry in manifest["scores"].items()}

    @classmethod
    def open(cls, root: Path) -> ImageBank:
        """Open a bank. UserError when there is none, or it is unfinished or damaged.

        Checks one image of every shard; `images` checks each that it reads.
        """
        root = Path(root)
        facts, manifest = read_facts(root), read_manifest(root)
        if facts is None:
            raise UserError(f"{root}: no image bank here; make one with launchers/synthesize.py")
        if manifest is None:
            raise UserError(f"{root}: the image bank is unfinished; give its synthesize.py command again")
        with damage_is_users(root):
            bank = cls(root, facts, manifest)
            if bank.content_hash != content_hash(facts, bank.labels, bank.digests):
                raise ValueError("labels or hashes changed")
        firsts = np.arange(0, len(bank), INDICES_PER_SHARD * len(facts.cell_types))
        bank.images(firsts)
        bank.latents(firsts)
        return bank

    def __len__(self) -> int:
        return self._count

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Its cell types; `labels`, int64 [n], are indices into them."""
        return self.facts.cell_types

    @property
    def image_size(self) -> int:
        return self.facts.image_size

    @property
    def domain(self) -> str:
        return self.facts.domain

    @property
    def made_by(self) -> dict[str, Any]:
        return self.facts.made_by

    def parent(self, row: int) -> str:
        """Id of the training image that a row is a variation of; '' for none."""
        parents = self.made_by.get("parents", {}).get(self.cell_types[self.labels[row]])
        return parents[row // len(self.cell_types) % len(parents)] if parents else ""

    def images(self, rows: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """RGB images uint8 [k, S, S, 3] of these rows, in their order. UserError when one is damaged."""
        rows = np.asarray(rows, np.int64)
        images: npt.NDArray[np.uint8] = self._read("images", rows)
        if len(rows) and not np.array_equal(hash_images(images), self.digests[rows]):
            raise _damaged(self.root, "images changed")
        return images

    def latents(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Latent vectors float32 [k, latent_size] of these rows, in their order. UserError when one is damaged."""
        latents: npt.NDArray[np.float32] = self._read("latents", np.asarray(rows, np.int64))
        if not np.isfinite(latents).all():
            raise _damaged(self.root, "latents are missing")
        return latents

    def write_scores(self, name: str, values: npt.ArrayLike) -> None:
        """Add or replace a score, float [n], one for every image; `best=name` of balance.py takes the highest.

        Call on one rank. ValueError unless there is one finite number for each image; UserError when the bank has
        changed since it was opened.
        """
        numbers = np.ascontiguousarray(values, np.float32)
        if numbers.shape != (len(self),) or not np.isfinite(numbers).all() or not NAME.fullmatch(name):
            raise ValueError(f"scores {name!r} {numbers.shape}: give a plain name and {len(self)} finite numbers")
        with naming(self.root), bank_lock(self.root):
            manifest = read_manifest(self.root)
            if manifest is None or manifest["content_hash"] != self.content_hash:
                raise UserError(f"{self.root}: the image bank has changed since it was opened; score it again")
            entry = _scores_entry(name, numbers)
            if manifest["scores"].get(name) != entry:
                shutil.rmtree(self.root / entry["array"], ignore_errors=True)  # of an interrupted command
                zarr.save_array(str(self.root / entry["array"]), numbers, zarr_format=3)
            for path in (self.root / _SCORES).rglob("*"):
                sync(path)
            old = manifest["scores"].get(name, entry)
            manifest["scores"][name] = entry
            commit_manifest(self.root, manifest)
            if old != entry:
                shutil.rmtree(self.root / old["array"], ignore_errors=True)
        self.scores[name] = numbers

    def _read(self, name: str, rows: npt.NDArray[np.int64]) -> Any:
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of an image bank of {len(self)}")
        order = np.argsort(rows)  # a shard's index is read once for consecutive rows
        with damage_is_users(self.root):
            found = self._arrays[name].oindex[rows[order]]
        return found[np.argsort(order)]

    def _read_scores(self, entry: dict[str, str]) -> npt.NDArray[np.float32]:
        numbers: npt.NDArray[np.float32] = zarr.open_array(str(self.root / entry["array"]), mode="r")[:]
        if hashlib.sha256(numbers.tobytes()).hexdigest() != entry["sha256"]:
            raise ValueError(f"{entry['array']} changed")
        return numbers


def read_facts(root: Path) -> BankFacts | None:
    """The facts of the bank at `root`, finished or not; None if nothing is there. UserError for anything else."""
    try:
        attributes = json.loads((root / _GROUP_FILE).read_text()).get("attributes", {})
        if attributes.pop("image_bank") != FORMAT_VERSION:
            raise UserError(f"{root}: an image bank of another format; make it again in a new folder")
        facts = BankFacts(**{**attributes, "cell_types": tuple(attributes["cell_types"])})
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{root}: holds a {_GROUP_FILE} that is no image bank's; name another folder") from None
    if not set(facts.cell_types) <= set(CELL_TYPES):
        raise _damaged(root, "unknown cell types")
    return facts


def write_facts(root: Path, facts: BankFacts) -> None:
    """Create an empty group with the bank's facts."""
    zarr.create_group(str(root), zarr_format=3, attributes={"image_bank": FORMAT_VERSION, **asdict(facts)})


def open_arrays(root: Path, mode: str = "r") -> dict[str, Any]:
    """The bank's Zarr arrays by name. Chunks of zeros (black images, one type's labels) are written like others."""
    arrays = {name: zarr.open_array(str(root / name), mode=mode) for name in ARRAYS}
    return {name: array.with_config({"write_empty_chunks": True}) for name, array in arrays.items()}


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The content of `bank.json`; None for an unfinished bank."""
    try:
        manifest: dict[str, Any] = json.loads((root / MANIFEST_FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise _damaged(root, MANIFEST_FILE) from None
    return manifest


def commit_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Replace `bank.json` and wait until it is on disk."""
    replace_through(root / MANIFEST_FILE, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
    sync(root)


def hash_images(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """SHA-256 of each image's pixels: uint8 [n, 32]."""
    joined = b"".join(hashlib.sha256(image.tobytes()).digest() for image in images)
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def content_hash(facts: BankFacts, labels: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]) -> str:
    """SHA-256 hex of images, labels and what made them; independent of scores and of the bank's folder."""
    digest = hashlib.sha256(facts.identity.encode())
    digest.update(labels.astype("<i8").tobytes())
    digest.update(digests.tobytes())
    return digest.hexdigest()


@contextmanager
def bank_lock(root: Path) -> Iterator[None]:
    """Lock the bank against other writers. UserError when one is at work."""
    try:
        lock = file_lock(root / LOCK_FILE, blocking=False).acquire()
    except Timeout:
        raise UserError(f"{root}: something else writes this image bank; wait until it has ended") from None
    with lock:
        yield


def _scores_entry(name: str, numbers: npt.NDArray[np.float32]) -> dict[str, str]:
    sha256 = hashlib.sha256(numbers.tobytes()).hexdigest()
    return {"array": f"{_SCORES}/{name}-{sha256[:16]}", "sha256": sha256}


def _damaged(root: Path, what: str) -> UserError:
    return UserError(f"{root}: the image bank is damaged ({what}); delete it and make it again with synthesize.py")


@contextmanager
def damage_is_users(root: Path) -> Iterator[None]:
    """Turns any error into a UserError: Zarr and its codecs raise all kinds for damaged bytes."""
    try:
        yield
    except Exception as error:
        raise _damaged(root, " ".join(str(error).split())[:120] or type(error).__name__) from None
