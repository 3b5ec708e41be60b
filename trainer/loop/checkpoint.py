"""Checkpoints: complete, written aside and renamed, named by their content, refused when damaged."""

import copy
import hashlib
import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import distributed, nn

from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError

_NAME = re.compile(r"(?P<kind>step|best)-(?P<step>\d{9})-(?P<digest>[0-9a-f]{16})\.(pt|safetensors)")
# Of EfficientNet-Lite0's 3.4 million weights, 0.2 million lie in smaller tensors. Stored as they are, they reduce the
# largest difference of a probability from 0.045 to 0.005, and add 5 % to the file.
_LARGE = 20_000


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file: its step and the first 16 hex digits of its SHA-256 stand in its name.

    A `.pt` file holds the state of all learners, a `.safetensors` file the weights of one.
    """

    path: Path
    step: int
    digest: str

    def load(self) -> dict[str, Any]:
        """The saved state, tensors on the CPU; no pickled code is run. UserError when damaged."""
        try:
            damaged = _digest(self.path) != self.digest
        except OSError as error:
            raise UserError(
                f"{self.path}: checkpoint cannot be read ({error.strerror}): see that the file is there and may be read"
            ) from error
        if damaged:
            raise UserError(
                f"{self.path}: checkpoint is damaged (its bytes are not those that were written): "
                "delete it and run the same command again to go on from the one before, or where it is the only "
                "one, train again in another run=DIR"
            )
        if self.path.suffix == ".safetensors":
            with safe_open(self.path, "pt") as file:
                learner = file.metadata()["learner"]
            return {"learners": {learner: {"module": load_file(self.path), "average": None}}}
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        return state

    def fill(self, network: nn.Module, weights: Mapping[str, Any], described_by: Path) -> None:
        """Give a network weights of this checkpoint. UserError when they are another's.

        described_by: the configuration that the network was built from.
        """
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise UserError(
                f"{self.path}: checkpoint of another model than {described_by} describes ({first[:160]}): "
                "put the run's own config.yaml and checkpoints back together"
            ) from error


class CheckpointStore:
    """The checkpoints of one run: the last few, and the best one."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory
        self._keep = keep

    def save(self, step: int, state: dict[str, Any], *, best: bool = False) -> None:
        """Write a state so that a kill at any moment leaves the older ones whole; then drop the oldest."""
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / f"partial-{os.getpid()}"
        try:
            # To a file without a name: torch writes one into the archive, and equal states would differ in their bytes.
            with partial.open("wb") as file:
                torch.save(_interned(state), file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"{self.directory}: checkpoint of step {step} cannot be written ({error}): free some space "
                "and run the same command again to go on from the one before"
            ) from error
        digest = _digest(partial)
        if best:  # first: a kill in between leaves a best checkpoint of an epoch that is done again
            self._link_best(partial, step, digest)
        partial.rename(self.directory / f"step-{step:09d}-{digest}.pt")
        self.drop_old()

    def save_weights(self, step: int, learner: str, weights: Mapping[str, torch.Tensor]) -> Checkpoint:
        """Write the weights of one learner's network as the best checkpoint: for use, not to resume from.

        Large tensors are in half precision. Those below _LARGE elements keep theirs: variances of batch norms may be
        too small for it, and errors of the first layers grow in all others.
        """
        stored = {
            name: (value.half() if value.is_floating_point() and value.numel() >= _LARGE else value).contiguous()
            for name, value in weights.items()
        }
        content = safetensors_bytes(stored, {"learner": learner})
        digest = hashlib.sha256(content).hexdigest()[:16]
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"best-{step:09d}-{digest}.safetensors"
        replace_through(path, content)
        return Checkpoint(path, step, digest)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None before the first."""
        return max(self._found("step"), key=lambda found: found.step, default=None)

    def best(self) -> Checkpoint | None:
        """The checkpoint that scored best on validation, or None before the first epoch's end."""
        return max(self._found("best"), key=lambda found: found.step, default=None)

    def _found(self, kind: str) -> list[Checkpoint]:
        matches = [(path, _NAME.fullmatch(path.name)) for path in sorted(self.directory.glob("*-*"))]
        return [
            Checkpoint(path, int(match["step"]), match["digest"])
            for path, match in matches
            if match is not None and match["kind"] == kind
        ]

    def _link_best(self, path: Path, step: int, digest: str) -> None:
        best = self.directory / f"best-{step:09d}-{digest}.pt"
        if not best.exists():
            best.hardlink_to(path)

    def drop_old(self) -> None:
        """Remove all but the last few, and what a killed process had half written."""
        for partial in self.directory.glob("partial-*"):
            partial.unlink(missing_ok=True)
        for kind, keep in (("step", self._keep), ("best", 1)):
            for old in sorted(self._found(kind), key=lambda found: found.step)[:-keep]:
                old.path.unlink(missing_ok=True)


def require_the_same_everywhere(checkpoint: Checkpoint | None, directory: Path) -> None:
    """UserError if ranks found different checkpoints, as they would then resume from different steps."""
    if not distributed.is_initialized():
        return
    mine = (socket.gethostname(), "no checkpoint" if checkpoint is None else checkpoint.path.name)
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    for rank, (host, name) in enumerate(found):
        if name != found[0][1]:
            raise UserError(
                f"{directory}: process 0 on {found[0][0]} finds {found[0][1]} there, process {rank} on {host} finds "
                f"{name}: put run= where all machines see the same files (where they do, a file may show late: run "
                "the same command again)"
            )


def _interned(value: Any) -> Any:
    """The same state, in which equal texts are one object: pickle writes a second one as a reference to the first.

    Else a state that was read from a checkpoint would be written in other bytes than an equal one that was not.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        same = copy.copy(value)  # with its attributes: a state dict's versions
        same.clear()
        same.update((_interned(key), _interned(entry)) for key, entry in value.items())
        return same
    if isinstance(value, list | tuple):
        return type(value)(map(_interned, value))
    return value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
