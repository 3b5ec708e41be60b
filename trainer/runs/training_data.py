"""What a run learned from, set down in the run: its data set may move or grow."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.disk import checked, replace_through, with_checksum
from data_pipeline.errors import UserError
from data_pipeline.lineage import banks_of, family, normalization
from data_pipeline.stream.config import StreamConfig

FILE = "training_data.json"


def save_training_data(run: Path, dataset: Dataset, config: StreamConfig) -> None:
    """Write run/training_data.json: the data set's name, hash, sources and split ratio, and counts of its images.

    Images are those of `config.domains` and `config.cell_types`. Under "counts" rows of domain, cell_type, split,
    origin and images; "domains" holds images, groups, images that name none, and microns per pixel, where known.
    """
    kinds = ["domain", "cell_type", "split", "origin"]
    columns = [*kinds, "id", "parent", "group", "microns_per_pixel"]
    rows = dataset.samples(domains=config.domains, cell_types=config.cell_types, columns=columns)
    rows = rows[rows["cell_type"] != ""]
    counts = rows.groupby(kinds).size().reset_index(name="images").to_dict("records")
    domains = {}
    for domain, part in rows.groupby("domain"):
        alone = (part["group"] == part["id"]) | (part["group"] == part["parent"])
        domains[str(domain)] = {
            "images": len(part),
            "groups": int(part["group"].nunique()),
            "without_group": int(alone.sum()),
            "microns_per_pixel": sorted(set(part["microns_per_pixel"].dropna().tolist())),
        }
    members = family(dataset)
    built = next((member.metadata for member in members if "sources" in member.metadata), {})
    told = {
        "data_set": Path(dataset.address).name,
        "content_hash": dataset.content_hash,
        "stored": dataset.metadata["settings"],
        "sources": [{key: source[key] for key in ("name", "kind", "domain")} for source in built.get("sources", [])],
        "ratio": built.get("ratio"),
        "made_by": normalization(dataset),
        "banks": [bank for member in members for bank in banks_of(member)],
        "domains": domains,
        "counts": counts,
    }
    replace_through(run / FILE, (json.dumps(with_checksum(told), indent=1) + "\n").encode())


def read_training_data(run: Path) -> dict[str, Any] | None:
    """The content of run/training_data.json; None if there is no such file. UserError if it is damaged."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        return checked(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): give the run's train_classifier.py command again") from None
