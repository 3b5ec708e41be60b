"""The data set of a reproduction without real images: phantom cells in two stains, some types with few."""

from pathlib import Path

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from trainer.experiments.reproduction import ReproductionConfig

_SLIDES = 20
_RATIO = (0.6, 0.1, 0.3)


def build_phantom_dataset(config: ReproductionConfig, folder: Path, shards: Path) -> None:
    """Render the preset's phantoms into `folder`, types of one count together, and shard them; what is there stays."""
    sources = []
    for count in sorted(set(config.phantoms.values())):
        types = [name for name in CELL_TYPES if config.phantoms.get(name) == count]
        table = render_phantoms(
            folder / str(count),
            count,
            slides=_SLIDES,
            size=config.phantom_size,
            seed=count,  # slides of one name hold other cells
            workers=1,
            paired=False,
            cell_types=types,
        )
        sources.append(SourceDeclaration(kind="table", name=f"phantom{count}", root=table, domain="phantom"))
    settings = ShardSettings(stored_size=config.phantom_size)
    build_dataset(shards, sources, settings=settings, ratio=_RATIO)
