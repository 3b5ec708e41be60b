"""Which data sets a data set was made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.shards.location import holder_of


def lineage(dataset: Dataset) -> set[str]:
    """Content hashes of a data set and of those it was made from, as far back as they still lie where they were."""
    members = family(dataset)
    named = {entry["content_hash"] for member in members for entry in member.metadata["parents"]}
    return {member.content_hash for member in members} | named


def family(dataset: Dataset) -> list[Dataset]:
    """A data set and those it was made from that still lie where they were, the nearest first."""
    members = [dataset]
    for child in members:  # grows while it is walked
        for entry in child.metadata["parents"]:
            root = holder_of(child.root, {"folder": entry["path"]})
            if Dataset.is_at(root):
                parent = Dataset.read_catalog(root)
                # One that has changed since may have other parents.
                if parent.content_hash == entry["content_hash"]:
                    members.append(parent)
    return members


def banks_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """What a data set records of the banks whose images it and those it was balanced from took in: name, made_by."""
    made_by = dataset.metadata["made_by"]
    while isinstance(made_by, dict) and made_by.get("tool") == "balance":
        yield from made_by["banks"]
        made_by = made_by["parent"]


def normalization(dataset: Dataset) -> Any:
    """What made a data set, or the one that it was balanced from: that holds the same normalised images."""
    made_by = dataset.metadata["made_by"]
    while isinstance(made_by, dict) and made_by.get("tool") == "balance":
        made_by = made_by["parent"]
    return made_by


def normalization_needs_label(dataset: Dataset) -> bool:
    """Whether its normalised images took the stain that their cell type has more of."""
    made_by = normalization(dataset)
    return isinstance(made_by, dict) and made_by.get("policy") == "thesis"
