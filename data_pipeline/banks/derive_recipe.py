"""What decides a derived data set: the rows it takes over, those it makes, with what, and the hash of it all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.attachments import describe_attachments
from data_pipeline.catalog import CATALOG_SCHEMA, Dataset, Sample
from data_pipeline.shards.location import holder_of, reference
from data_pipeline.shards.writer import PlannedShard, ShardSettings, plan_shards

_RECIPE_ID = re.compile(r"[0-9a-f]{64}")
# How the location of an image reads in a row that has none.
NOWHERE: dict[str, Any] = {"shard": "", "key": "", "offset": None, "size": None, "crc32": None}


@dataclass(frozen=True)
class Recipe:
    """All that decides a derived data set. `plan`: the hash of it, wherever parent and data set lie."""

    parent: Dataset
    kept: tuple[Sample, ...]
    planned: tuple[PlannedShard, ...]
    made_by: dict[str, Any]
    settings: ShardSettings
    attachments: dict[str, dict[str, Any]]  # as the catalogue names them
    files: Mapping[str, Path]  # the attachments' own files
    plan: str

    def referred(self) -> dict[str, dict[str, Any]]:
        """The parent's entries of the shards that kept rows lie in."""
        names = sorted({row.shard for row in self.kept if row.kept})
        return {name: self.parent.metadata["shards"][name] for name in names}

    def referred_from(self, root: Path) -> dict[str, dict[str, Any]]:
        """The entries of those shards in a data set at `root`: each names the folder that holds the shard."""
        return {
            name: {**facts, "folder": reference(root, holder_of(self.parent.root, facts))}
            for name, facts in self.referred().items()
        }

    def parents(self, root: Path) -> list[dict[str, str]]:
        """What a data set at `root` says of the one it comes from."""
        return [{"path": reference(root, self.parent.root), "content_hash": self.parent.content_hash}]


def make_recipe(
    parent: Dataset,
    kept: Sequence[Sample],
    made: Sequence[Sample],
    made_by: dict[str, Any],
    settings: ShardSettings,
    attachments: Mapping[str, Path],
) -> Recipe:
    """The recipe; ValueError for templates that are none, UserError for an attachment that cannot be read."""
    if len({row.id for row in made}) < len(made):
        raise ValueError("two templates share a recipe id")
    for row in made:
        if not _RECIPE_ID.fullmatch(row.id) or not row.kept:
            raise ValueError(f"{row.path}: a template is kept and its id is 64 hexadecimal digits, not {row.id!r}")
    described = describe_attachments(attachments)
    made_with = [made_by, dataclasses.asdict(settings)]
    templates = [dataclasses.replace(row, **NOWHERE) for row in made]
    planned = tuple(
        dataclasses.replace(shard, plan=_hash([*made_with, shard.plan])) for shard in plan_shards(templates, settings)
    )
    rows = sorted(_hash([getattr(row, name) for name in CATALOG_SCHEMA.names]) for row in kept)
    plan = _hash([*made_with, described, parent.content_hash, rows, [shard.plan for shard in planned]])
    return Recipe(parent, tuple(kept), planned, made_by, settings, described, attachments, plan)


def _hash(value: Any) -> str:
    """SHA-256, hex, of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=bytes.hex).encode()).hexdigest()
