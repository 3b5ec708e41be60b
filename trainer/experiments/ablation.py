"""The thesis's ablation (chapter 5, figures 58-62): six arms, as graphs of stages that share what they can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from data_pipeline.banks.balance import training_counts
from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES, in_our_words
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Root
from trainer.experiments.launches import StagePlanner
from trainer.experiments.method_stages import CellTypeRoles, MethodStages, in_label_order
from trainer.experiments.stages import Stage
from trainer.tasks.few_shot.data import FEWEST_OF_RICH

# Arguments that the ablation itself gives each launcher; a user may not set them.
_SET_HERE = {
    "stain": ("shards", "run", "a", "b"),
    "normalize": ("shards", "out", "run", "method", "a", "b", "image_size"),
    "conditional": ("shards", "run", "data.cell_types"),
    "few_shot": ("shards", "run", "rich_types", "rare_types"),
}
_TYPE_LISTS = ("rich_types", "moderate_types", "rare_types")


@dataclass(frozen=True)
class AblationConfig:
    """What the arms leave out of what. Lists of arguments are key=value, the same in every arm.

    With all types and per_type null, the thesis's data give the thesis's types: eight moderate, three rare, neutrophils
    as they are. Each generator is trained once, for all seeds of the classifier: the intervals do not include its luck.
    """

    stain_to: str | None = None  # stain that all images get; null: of the data set's two, the one with more images
    stain_from: str | None = None  # stain that is translated; null: the other one
    rich_types: list[str] | None = None  # few-shot generators are trained on them; null: all that are not rare
    moderate_types: list[str] | None = None  # made by C-WGAN-GP; null: others with fewer than per_type training images
    rare_types: list[str] | None = None  # made by few-shot generation; null: those with 1 to 99 training images
    per_type: int | None = None  # training images of each rare and moderate type; null: as many as the largest type has
    folds: int = 3  # parts of the moderate types; few-shot generation makes each after training on the others
    stain: list[str] = field(default_factory=list)  # arguments of train_stain_gan.py
    normalize: list[str] = field(default_factory=list)  # of normalize_stains.py
    conditional: list[str] = field(default_factory=list)  # of train_conditional_gan.py
    few_shot: list[str] = field(default_factory=list)  # of train_few_shot_gan.py

    def __post_init__(self) -> None:
        if self.per_type is not None and self.per_type < 1:
            raise ValueError(f"ablation.per_type={self.per_type}: must be at least 1, or null")
        if self.folds < 2:
            raise ValueError(f"ablation.folds={self.folds}: must be at least 2, so that there are types to learn from")
        if (self.stain_to is None) != (self.stain_from is None) or (
            self.stain_to is not None and self.stain_to == self.stain_from
        ):
            raise ValueError(f"ablation.stain_to={self.stain_to}: name two stains, stain_from= too, or neither")
        for name in _TYPE_LISTS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, in_our_words(getattr(self, name)))
            for cell_type in getattr(self, name) or ():
                if cell_type not in CELL_TYPES:
                    raise ValueError(f"ablation.{name}={cell_type}: no cell type; use some of {', '.join(CELL_TYPES)}")
        for cell_type in self.rare_types or ():
            for other in ("rich_types", "moderate_types"):
                if cell_type in (getattr(self, other) or ()):
                    raise ValueError(f"ablation.rare_types={cell_type}: is among {other} too; leave it out of one")
        for name, taken in _SET_HERE.items():
            for argument in getattr(self, name):
                key, sign, _ = argument.partition("=")
                if not sign:
                    raise ValueError(f"ablation.{name}={argument}: write arguments as key=value")
                if key in taken:
                    raise ValueError(f"ablation.{name}={argument}: {key} is for the ablation to set; leave it out")


@dataclass(frozen=True)
class Arm:
    """One arm of an experiment: a classifier's data set and settings."""

    name: str  # in folders and tables
    title: str  # for people
    dataset: Stage | Root  # the stage that makes it, or where it lies
    overrides: tuple[str, ...] = ()  # arguments of train_classifier.py


def ablation_arms(config: AblationConfig, shards: Root, planner: StagePlanner) -> list[Arm]:
    """The six arms of the thesis on this data set, the full method first.

    Validation and test images are those of `shards` in every arm, normalised where the arm normalises.
    UserError for an argument that a launcher does not know, without a second stain, and if a generator has nothing to
    do: two arms would be the same under two names.
    """
    dataset = Dataset.open(shards)
    stages = method_stages(config, dataset, planner)
    normalized = stages.normalized(shards, *choose_stains(config, dataset))
    full = stages.of_both_generators(normalized)
    unnormalized = stages.of_both_generators(shards, " unnormalized")
    return [
        Arm("full", "Full method", full),
        Arm("without_ge", "Without gather-excite", full, ("model.ge=false",)),
        Arm("without_normalization", "Without stain normalisation", unnormalized),
        Arm("few_shot_only", "Few-shot generation for every type", stages.of_few_shot(normalized, config.folds)),
        Arm("conditional_only", "C-WGAN-GP for every type", stages.of_conditional(normalized)),
        Arm("original", "Original data", shards),
    ]


def method_stages(config: AblationConfig, dataset: Dataset, planner: StagePlanner) -> MethodStages:
    """The method's stages for this data set."""
    roles = choose_roles(config, training_counts(dataset), dataset.root)
    return MethodStages(roles, planner, config.stain, config.normalize, config.conditional, config.few_shot)


def choose_roles(config: AblationConfig, counts: Mapping[str, Mapping[str, int]], where: Root) -> CellTypeRoles:
    """Which generator makes which types. counts: of `training_counts`. where: the data set, for messages.

    UserError for a named type without training images, and for a generator with nothing to make or to train on.
    """
    present = [name for name in CELL_TYPES if counts[name]["real"]]
    images = {name: sum(counts[name].values()) for name in present}
    named = {name: getattr(config, name) for name in _TYPE_LISTS}
    for field_name, types in named.items():
        for name in types or ():
            if name not in present:
                raise UserError(
                    f"{where}: ablation.{field_name} names {name}, which has no training image; leave it out"
                )
    if not present:
        raise UserError(f"{where}: no training image has a cell type: see build_report.json")
    per_type = config.per_type or max(images.values())
    claimed = {*(config.rich_types or ()), *(config.moderate_types or ())}
    by_count = [name for name in present if counts[name]["real"] < FEWEST_OF_RICH and name not in claimed]
    rare = in_label_order(by_count if config.rare_types is None else config.rare_types)
    others = [name for name in present if name not in rare]
    scarce = [name for name in others if images[name] < per_type]
    moderate = in_label_order(scarce if config.moderate_types is None else config.moderate_types)
    rich = in_label_order(others if config.rich_types is None else config.rich_types)
    lacking = {name: per_type - images[name] for name in (*moderate, *rare) if images[name] < per_type}
    roles = CellTypeRoles(rich, moderate, rare, per_type, lacking)
    _check_work(roles, config, where)
    return roles


def _check_work(roles: CellTypeRoles, config: AblationConfig, where: Root) -> None:
    """UserError unless every generator has something to make and something to train on."""
    fewer = f"has fewer than per_type={roles.per_type} training images: name others, or raise ablation.per_type"
    if not roles.rare:
        raise UserError(
            f"{where}: no cell type has fewer than {FEWEST_OF_RICH} training images, so none for few-shot generation "
            "to make: name some, ablation.rare_types=[...]"
        )
    if not roles.made(roles.rare):
        raise UserError(f"{where}: none of the rare types ({', '.join(roles.rare)}) {fewer}")
    if len(roles.moderate) < 2:
        raise UserError(
            f"{where}: C-WGAN-GP needs two cell types at least, and has {', '.join(roles.moderate) or 'none'} (neither "
            f"rare nor with per_type={roles.per_type} training images): name them, ablation.moderate_types=[...]"
        )
    if not roles.made(roles.moderate):
        raise UserError(f"{where}: none of the types for C-WGAN-GP ({', '.join(roles.moderate)}) {fewer}")
    for fold in ((), *roles.folds(config.folds)):
        if not set(roles.rich) - set(fold):
            raise UserError(
                f"{where}: no rich type beside {', '.join(fold or roles.rare)} for few-shot generation to learn from: "
                "name more in ablation.rich_types, or raise ablation.folds"
            )


def choose_stains(config: AblationConfig, dataset: Dataset) -> tuple[str, str]:
    """The stain that all images get, and the one that is translated. UserError unless the data set has both."""
    counts = dataset.samples(columns=["domain"])["domain"].value_counts()
    here = ", ".join(sorted(counts.index))
    for name in (config.stain_to, config.stain_from):
        if name is not None and name not in counts.index:
            raise UserError(f"{dataset.root}: no stain {name!r} here (ablation.stain_to, stain_from); there are {here}")
    if config.stain_to is not None and config.stain_from is not None:
        return config.stain_to, config.stain_from
    if len(counts) < 2:
        raise UserError(
            f"{dataset.root}: images of one stain only ({here or 'none'}), so there is no stain normalisation to go "
            "without: add a source stained differently with build_shards.py, domain=NAME"
        )
    if len(counts) > 2:
        raise UserError(
            f"{dataset.root}: images of {len(counts)} stains ({here}): name two, ablation.stain_to= and stain_from="
        )
    # Equal counts: the first by name.
    ranked = sorted(counts.index, key=lambda name: (-counts[name], name))
    return ranked[0], ranked[1]
