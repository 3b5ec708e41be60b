"""The presets of a reproduction: the size of each part of the experiment, and rendered cells in place of real ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.cell_types import CELL_TYPES
from trainer.experiments.ablation import AblationConfig
from trainer.experiments.resources import Resources
from trainer.runs.configuration import read_file

_SLIDES = 20
_RATIO = (0.6, 0.1, 0.3)


@dataclass(frozen=True)
class ReproductionConfig:
    """A preset. Lists of arguments are key=value."""

    note: str = ""  # for readers of the report
    phantoms: dict[str, int] = field(default_factory=dict)  # cell type -> images to render if no raw folder is given
    phantom_size: int = 48  # side, pixels
    build: list[str] = field(default_factory=list)  # arguments of build_shards.py, beside the sources
    ablation: AblationConfig = field(default_factory=AblationConfig)  # its arguments are those of all models of a kind
    # Rivals: name -> arguments over those. A few-shot rival may have any name if model= is among its arguments.
    stain_models: dict[str, list[str]] = field(default_factory=dict)
    conditional_models: dict[str, list[str]] = field(default_factory=dict)
    few_shot_models: dict[str, list[str]] = field(default_factory=dict)
    classifier: list[str] = field(default_factory=list)  # train_classifier.py, for the ablation and the two sites
    seeds: list[int] = field(default_factory=lambda: [0])  # of these classifiers
    judge: list[str] = field(default_factory=list)  # train_classifier.py, real images only; names generated images
    # Space of the distances. inception: FID, KID and inception score where the network's weights are at hand, else the
    # judge's features, under names of their own.
    features: Literal["judge", "inception"] = "judge"
    inception_weights: str | None = None  # torch-fidelity's file; null: the one in torch's cache
    lpips_weights: str | None = None  # torchvision's file of AlexNet, for LPIPS; null: the one in torch's cache
    scored_images: int = 100  # generated for scoring, of each type
    comparison: list[str] = field(default_factory=list)  # train_classifier.py, for all classifiers of figure 52
    models: list[str] = field(default_factory=list)  # the classifiers of figure 52
    model_settings: dict[str, list[str]] = field(default_factory=dict)  # model -> arguments over those of comparison
    resources: Resources = field(default_factory=Resources)  # of each stage and each trial

    def __post_init__(self) -> None:
        for name, count in self.phantoms.items():
            if name not in CELL_TYPES or count < 1:
                raise ValueError(f"phantoms.{name}={count}: name a cell type and how many images, at least 1")
        if self.scored_images < 2:
            raise ValueError(f"scored_images={self.scored_images}: must be at least 2")


def read_preset(path: Path, changes: Sequence[str]) -> ReproductionConfig:
    """The preset of a file, with `changes` (key=value, the command line's) laid over it; UserErrors of `read_file`."""
    return read_file(ReproductionConfig, path, changes, "preset")


def build_phantom_dataset(config: ReproductionConfig, folder: Path, shards: Path) -> None:
    """Render the preset's phantoms into `folder`, types of one count together, and shard them; existing ones stay."""
    from data_pipeline.ingest.build import build_dataset  # here: a preset is read without torch
    from data_pipeline.phantoms.folders import render_phantoms
    from data_pipeline.shards.writer import ShardSettings
    from data_pipeline.sources import SourceDeclaration

    sources = []
    for count in sorted(set(config.phantoms.values())):
        table = render_phantoms(
            folder / str(count),
            count,
            slides=_SLIDES,
            size=config.phantom_size,
            seed=count,  # slides of one name hold other cells
            workers=1,
            paired=False,
            cell_types=[name for name in CELL_TYPES if config.phantoms.get(name) == count],
        )
        sources.append(SourceDeclaration(kind="table", name=f"phantom{count}", root=table, domain="phantom"))
    settings = ShardSettings(stored_size=config.phantom_size)
    build_dataset(shards, sources, settings=settings, ratio=_RATIO)
