"""Which data sets a data set was made from."""

from collections.abc import Iterator
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.shards.location import holder_of


def lineage(dataset: Dataset) -> set[str]:
    """Content hashes of a data set and its ancestors, as far back as they are still in their place."""
    members = family(dataset)
    named = {entry["content_hash"] for member in members for entry in member.metadata["parents"]}
    return {member.content_hash for member in members} | named


def family(dataset: Dataset) -> list[Dataset]:
    """A data set and its ancestors that are still in their place, the nearest first."""
    members = [dataset]
    for child in members:  # grows in the loop
        for entry in child.metadata["parents"]:
            root = holder_of(child.root, {"folder": entry["path"]})
            if Dataset.is_at(root):
                parent = Dataset.read_catalog(root)
                if parent.content_hash == entry["content_hash"]:  # a changed one may have other parents
                    members.append(parent)
    return members


def banks_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Records {name, made_by} of the banks whose images are in a data set, through all its balancings."""
    made_by = dataset.metadata["made_by"]
    while isinstance(made_by, dict) and made_by.get("tool") == "balance":
        yield from made_by["banks"]
        made_by = made_by["parent"]


def normalization(dataset: Dataset) -> Any:
    """`made_by` of a data set, or of the one it was balanced from, which has the same normalised images."""
    made_by = dataset.metadata["made_by"]
    while isinstance(made_by, dict) and made_by.get("tool") == "balance":
        made_by = made_by["parent"]
    return made_by


def normalization_needs_label(dataset: Dataset) -> bool:
    """Whether the stain of its normalised images was chosen by their cell type."""
    made_by = normalization(dataset)
    return isinstance(made_by, dict) and made_by.get("policy") == "thesis"
