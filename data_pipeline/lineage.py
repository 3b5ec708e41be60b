"""Which data sets a data set was made from."""

from data_pipeline.catalog import Dataset
from data_pipeline.shard_location import holder_of


def lineage(dataset: Dataset) -> set[str]:
    """Content hashes of a data set and of those it was made from, as far back as they still lie where they were."""
    hashes, waiting = {dataset.content_hash}, [dataset]
    while waiting:
        child = waiting.pop()
        for entry in child.metadata["parents"]:
            hashes.add(entry["content_hash"])
            root = holder_of(child.root, {"folder": entry["path"]})
            if Dataset.is_at(root):
                parent = Dataset.read_catalog(root)
                # One that has changed since may have other parents.
                if parent.content_hash == entry["content_hash"]:
                    waiting.append(parent)
    return hashes
