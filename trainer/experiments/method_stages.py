"""The parts of the thesis's method as stages of launchers: normalised data, generators, their images, filled data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.shards.store import Root
from trainer.experiments.stages import Inputs, Stage
from trainer.runs.arguments import later_wins, written

# What a piece of work is for people, its launcher's name and arguments, to its configuration; UserError for an
# argument that the launcher does not know.
Compose = Callable[[str, str, Sequence[str]], Any]


def make_stage(
    compose: Compose,
    name: str,
    launcher: str,
    arguments: Sequence[str],
    inputs: Inputs,
    output: str | None,
    *,
    one_process: bool = False,
) -> Stage:
    """A stage, known by what its arguments come to. UserError for one that the launcher does not know."""
    arguments = later_wins(arguments)
    settings = compose(name, launcher, arguments)
    return Stage(name, launcher, arguments, inputs, output, settings, one_process)


@dataclass(frozen=True)
class CellTypeRoles:
    """What becomes of each cell type; names in the order of CELL_TYPES.

    rich: learned from before few-shot generation. moderate: learned by C-WGAN-GP. rare: few-shot generation's.
    per_type: training images that a type is brought to. lacking: type -> images to be generated, at least one;
    moderate and rare types alone.
    """

    rich: tuple[str, ...]
    moderate: tuple[str, ...]
    rare: tuple[str, ...]
    per_type: int
    lacking: Mapping[str, int]

    def folds(self, number: int) -> list[tuple[str, ...]]:
        """The moderate types that lack images, dealt into at most so many parts."""
        made = self.made(self.moderate)
        return [made[first::number] for first in range(min(number, len(made)))]

    def made(self, cell_types: Sequence[str]) -> tuple[str, ...]:
        """Those of the types that lack images."""
        return tuple(name for name in cell_types if name in self.lacking)


@dataclass(frozen=True)
class MethodStages:
    """Stages of the method. Folders are named after them, and a stage that two graphs share has one name in both.

    stain, normalize, conditional, few_shot: more arguments of their launchers. threads: for a training's images to
    decode. compose: see `Compose`.
    """

    roles: CellTypeRoles
    threads: int
    compose: Compose
    stain: Sequence[str]
    normalize: Sequence[str]
    conditional: Sequence[str]
    few_shot: Sequence[str]

    def normalized(self, parent: Root, stain_to: str, stain_from: str) -> Stage:
        """All images in one stain."""
        inputs: Inputs = {"shards": parent, "run": self.stain_run(parent, stain_to, stain_from)}
        return self._stage("normalized data", "normalize_stains", tuple(self.normalize), inputs, "out")

    def stain_run(
        self, parent: Root, stain_to: str, stain_from: str, name: str = "stain GAN", arguments: Sequence[str] = ()
    ) -> Stage:
        """The training of a translator between two stains. arguments: over those of `stain`."""
        told = (f"a={stain_to}", f"b={stain_from}", *self.stain, *arguments)
        return self._training(name, "train_stain_gan", told, parent)

    def of_both_generators(self, parent: Stage | Root, suffix: str = "") -> Stage:
        """C-WGAN-GP for the moderate types; then few-shot generation, which learns from them as filled up."""
        filled = self.filled(parent, suffix)
        rare = self.bank(self.few_shot_run(filled, self.roles.rich, self.roles.rare, f"few-shot GAN{suffix}"))
        return self.balanced(filled, (rare,), f"balanced data{suffix}")

    def filled(self, parent: Stage | Root, suffix: str = "") -> Stage:
        """The moderate types brought to their number by C-WGAN-GP."""
        moderate = self.bank(self.conditional_run(parent, self.roles.moderate, f"C-WGAN-GP{suffix}"))
        return self.balanced(parent, (moderate,), f"filled data{suffix}")

    def of_few_shot(self, parent: Stage | Root, folds: int) -> Stage:
        """Few-shot generation alone. It is for unseen types, so those of a fold are left out of its meta-training."""
        roles = self.roles
        banks = [self.bank(self.few_shot_run(parent, roles.rich, roles.rare, "few-shot GAN alone"))]
        for number, fold in enumerate(roles.folds(folds), start=1):
            rich = [name for name in roles.rich if name not in fold]
            banks.append(self.bank(self.few_shot_run(parent, rich, fold, f"few-shot GAN alone fold {number}")))
        return self.balanced(parent, tuple(banks), "balanced data few-shot alone")

    def of_conditional(self, parent: Stage | Root) -> Stage:
        """C-WGAN-GP alone, of one training on moderate and rare types."""
        return self.balanced(parent, (self.bank(self.conditional_alone(parent)),), "balanced data C-WGAN-GP alone")

    def conditional_alone(self, parent: Stage | Root) -> Stage:
        """A training of C-WGAN-GP on moderate and rare types."""
        types = in_label_order([*self.roles.moderate, *self.roles.rare])
        return self.conditional_run(parent, types, "C-WGAN-GP alone")

    def conditional_run(
        self, parent: Stage | Root, types: Sequence[str], name: str, arguments: Sequence[str] = ()
    ) -> Stage:
        """A training on these types of C-WGAN-GP, or of a rival that the arguments (over `conditional`) name."""
        told = (f"data.cell_types={written(types)}", *self.conditional, *arguments)
        return self._training(name, "train_conditional_gan", told, parent)

    def few_shot_run(
        self, parent: Stage | Root, rich: Sequence[str], rare: Sequence[str], name: str, arguments: Sequence[str] = ()
    ) -> Stage:
        """A training of the few-shot generator, or of a rival, for those of the rare types that lack images."""
        made = self.roles.made(rare)
        types = (f"rich_types={written(rich)}", f"rare_types={written(made)}")
        return self._training(name, "train_few_shot_gan", (*types, *self.few_shot, *arguments), parent)

    def bank(self, run: Stage) -> Stage:
        """Of each of the run's types that lacks images as many as the neediest of them lacks."""
        made = self.roles.made(_types_of(run))
        return self.images(run, f"{run.name} images", max(self.roles.lacking[name] for name in made), made)

    def images(self, run: Stage, name: str, count: int, types: Sequence[str], seed: int = 0) -> Stage:
        """So many images of each of these types, drawn by a generator's run."""
        more = (f"seed={seed}",) if seed else ()
        arguments = (f"count={count}", f"cell_types={written(types)}", *more)
        return self._stage(name, "synthesize", arguments, {"run": run}, "bank")

    def balanced(self, parent: Stage | Root, banks: tuple[Stage, ...], name: str) -> Stage:
        """Each type brought to its number of training images by the banks' images."""
        arguments = (f"per_type={self.roles.per_type}",)
        return self._stage(name, "balance", arguments, {"shards": parent, "banks": banks}, "out")

    def _training(self, name: str, launcher: str, arguments: Sequence[str], parent: Stage | Root) -> Stage:
        told = (f"data.threads={self.threads}", *arguments)
        return self._stage(name, launcher, told, {"shards": parent}, "run")

    def _stage(self, name: str, launcher: str, arguments: Sequence[str], inputs: Inputs, output: str) -> Stage:
        return make_stage(self.compose, name, launcher, arguments, inputs, output)


def _types_of(run: Stage) -> Sequence[str]:
    """The types that a generator's run learns to make."""
    if run.launcher == "train_few_shot_gan":
        return list(run.settings.rare_types)
    return list(run.settings.data.cell_types)


def in_label_order(types: Sequence[str]) -> tuple[str, ...]:
    """These types, each once, in the order of CELL_TYPES."""
    return tuple(name for name in CELL_TYPES if name in types)
