"""Everything besides the raw files that decides a data set: remembered in it, changed by a build's arguments."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.catalog import FORMAT_VERSION, Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.curate import DEFAULT_RATIO, Exclusion, Ratio, check_ratio, read_exclusions
from data_pipeline.ingest.images import DECODING
from data_pipeline.ingest.review import Decision, Review, read_review, with_decisions
from data_pipeline.names import Names, shown
from data_pipeline.shards.build_files import BUILT
from data_pipeline.shards.store import Root
from data_pipeline.shards.writer import LAYOUT, ShardSettings
from data_pipeline.sources import SourceDeclaration


@dataclass(frozen=True)
class Recipe:
    """Everything besides the raw files that decides a data set: as remembered, changed by this build's arguments."""

    sources: tuple[SourceDeclaration, ...]  # in the order of declaration
    settings: ShardSettings
    ratio: Ratio
    exclusions: tuple[Exclusion, ...]
    decisions: tuple[Decision, ...]  # of experts, remembered and new
    review: Review  # what is new

    @property
    def folders(self) -> dict[str, Path]:
        return {declaration.name: declaration.folder for declaration in self.sources}


def make_recipe(
    root: Root,
    old: Dataset | None,
    sources: Sequence[SourceDeclaration],
    remove: Sequence[str],
    exclude: Path | None,
    review: Sequence[Path] | None,
    settings: ShardSettings | None,
    ratio: Sequence[float] | None,
) -> Recipe:
    """The recipe of a build, its arguments as those of `build_dataset`. UserError for what contradicts itself."""
    remembered: Mapping[str, Any] = old.metadata if old else {}
    before = map(SourceDeclaration.from_json, remembered.get("sources", []))
    declared = {declaration.name: declaration for declaration in before}
    names = [declaration.name for declaration in sources]
    for name in names:
        if names.count(name) > 1 or name in remove:
            raise UserError(f"source {name!r} is named twice in this command; name each source once")
    for name in remove:
        if declared.pop(name, None) is None:
            there, hint = ", ".join(declared) or "none", Names(declared).hint(name)
            raise UserError(f"{root}: no source '{shown(name)}' to remove{hint}; the sources are: {there}")
    for declaration in sources:
        absolute = dataclasses.replace(declaration, root=Path(os.path.abspath(declaration.root)))
        declared[declaration.name] = absolute.as_remembered(declared.get(declaration.name))
    if not declared:
        raise UserError(f"{root}: no source declared; name at least one folder or table of images")
    remembered_exclusions = [Exclusion(**stored) for stored in remembered.get("exclusions", [])]
    decided = [] if review == [] else [Decision(**stored) for stored in remembered.get("decisions", [])]
    new = read_review(review) if review else Review()
    return Recipe(
        tuple(declared.values()),
        settings or ShardSettings(**remembered.get("settings", {})),
        check_ratio(remembered.get("ratio", DEFAULT_RATIO) if ratio is None else ratio),
        tuple(read_exclusions(exclude) if exclude else remembered_exclusions),
        with_decisions(decided, new.decisions),
        new,
    )


def make_metadata(
    recipe: Recipe, shards: Mapping[str, Any], partitions: Mapping[str, Any], hashed: str
) -> dict[str, Any]:
    """The catalogue's metadata: the same for a data set built at once and one that grew."""
    return {
        "format_version": FORMAT_VERSION,
        "decoding": DECODING,
        "layout": LAYOUT,
        "made_by": BUILT,
        "parents": [],
        "sources": [declaration.to_json() for declaration in recipe.sources],
        "settings": dataclasses.asdict(recipe.settings),
        "ratio": list(recipe.ratio),
        "exclusions": [dataclasses.asdict(exclusion) for exclusion in recipe.exclusions],
        "decisions": [dataclasses.asdict(decision) for decision in recipe.decisions],
        "shards": dict(shards),
        "partitions": dict(partitions),
        "content_hash": hashed,
    }
