"""The thesis's whole experiment as stages and two sweeps: every model, every rival, the ablation, two sites.

REPRODUCTION/stages holds what launchers made, ablation/ and comparison/ the two sweeps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.shards.store import Root
from trainer.experiments.launches import StagePlanner
from trainer.experiments.method_stages import CellTypeRoles
from trainer.experiments.reproduction_config import ReproductionConfig
from trainer.experiments.reproduction_stages import SITE_ARMS, Control, ReproductionPlanner, Scored, SiteTraining
from trainer.experiments.results import TRIALS_FOLDER
from trainer.experiments.stages import Stage, describe, in_order
from trainer.experiments.sweep import Sweep, plan_sweep
from trainer.experiments.sweep_config import SweepConfig
from trainer.tasks.stain.normalization_config import TO_A, TO_B

AUDIT_FILE = "audit.json"


@dataclass(frozen=True)
class Reproduction:
    """All that is to be done, known before any of it runs, except the comparison, which reads a stage's output."""

    config: ReproductionConfig
    where: Path  # file of the preset
    folder: Path
    dataset: Dataset
    stains: tuple[str, str]
    roles: CellTypeRoles
    ablation: Sweep
    models: Mapping[str, Mapping[str, Scored]]
    sites: tuple[SiteTraining, ...]
    controls: tuple[Control, ...]

    @property
    def stages_folder(self) -> Path:
        """The folder of all stages."""
        return self.folder / "stages"

    @property
    def stages(self) -> list[Stage]:
        """Every stage, each after those that it needs, those of the ablation and its control first."""
        scores = [each.score for models in self.models.values() for each in models.values()]
        sites = [each.score or each.run for each in self.sites]
        return in_order([*self.ablation_stages, *scores, *sites])

    @property
    def ablation_stages(self) -> list[Stage]:
        """The stages of the ablation's data and of its control."""
        return in_order([*self.ablation.stages, *(each.run for each in self.controls)])

    def comparison(self) -> Sweep:
        """The classifiers of figure 52, on the full method's data, whose stage is done."""
        full = self.ablation.arms[0].dataset
        assert isinstance(full, Stage)
        config = SweepConfig(
            name="comparison",
            kind="comparison",
            shards=str(full.folder(self.stages_folder)),
            fixed=self.config.comparison,
            seeds=self.config.seeds,
            models=self.config.models,
            model_settings=self.config.model_settings,
            resources_per_trial=self.config.resources,
        )
        return plan_sweep(config, self.folder / "comparison", self.where)

    def describe(self) -> list[str]:
        """Lines that plan=true prints: stains, counts and sizes of the data set, every stage, its state and command."""
        stages, config = self.stages, self.config
        a, b = self.stains
        waiting = len(in_order(stages, self.stages_folder))
        return [
            f"A={a}, B={b}; {self.direction}",
            self.counts(),
            *self.sizes(),
            f"reproduction {self.where.stem}: {len(stages)} stages, {waiting} of them to run; "
            f"{len(self.ablation.trials)} trainings of the ablation, {len(config.models) * len(config.seeds)} to "
            "compare classifiers by",
            *describe(stages, self.stages_folder, config.resources),
        ]

    @property
    def direction(self) -> str:
        """Which images take which stain, in words."""
        a, b = self.stains
        stage = next(each for each in self.ablation.stages if each.launcher == "normalize_stains")
        policy = stage.settings.policy
        if policy in ("to_a", "to_b"):
            return f"all images take the stain of {a if policy == 'to_a' else b}"
        told = "its label, in training images alone" if policy == "thesis" else "the type that a first classifier names"
        return (
            f"by {told}: {', '.join(TO_A)} of {b} take the stain of {a}, {', '.join(TO_B)} of {a} that of {b} (so "
            "says section 4.1, whose reason its tables 2 and 3 contradict), all others stay as they are"
        )

    def counts(self) -> str:
        """Images of each type, as in table 6."""
        found = self.dataset.samples(columns=["cell_type"])["cell_type"].value_counts()
        types = ", ".join(f"{name} {found[name]}" for name in CELL_TYPES if name in found)
        return f"images: {types}; {found.drop('', errors='ignore').sum()} in all"

    def sizes(self) -> list[str]:
        """Sides of the images in pixels, as stored and as each network has them, and a warning where they differ."""
        stored = self.dataset.metadata["settings"]["stored_size"]
        made = {kind: next(iter(models.values())).run.settings.data.image_size for kind, models in self.models.items()}
        seen = self.ablation.trials[0].config.data.image_size
        words = ", ".join(f"{kind.replace('_', ' ')} {side}" for kind, side in made.items())
        lines = [f"sizes: stored {stored or 'as they came'}, {words}, classifier {seen}"]
        if set(made.values()) != {stored}:
            lines.append(
                "warning: real, normalised and generated images differ in size, so their sharpness betrays the origin: "
                "give build_shards.py and all generators one size"
            )
        return lines

    def place(self, stage: Stage) -> str:
        """Where a stage's output lies in the reproduction's folder."""
        return os.path.relpath(stage.folder(self.stages_folder), self.folder)

    def site_runs(self) -> list[tuple[str, str, str]]:
        """(arm, site or "both", run in the reproduction's folder) of all classifiers of the two sites' experiment."""
        runs = [(each.arm, each.site, self.place(each.run)) for each in self.sites]
        return runs + [
            (trial.arm, "both", f"ablation/{TRIALS_FOLDER}/{trial.name}")
            for trial in self.ablation.trials
            if trial.arm in SITE_ARMS
        ]


def plan_reproduction(config: ReproductionConfig, preset: Path, folder: Path, shards: Root) -> Reproduction:
    """Plan every stage and the ablation. preset: the file of `config`, which UserErrors name."""
    folder, dataset = folder.resolve(), Dataset.open(shards)
    sweep = SweepConfig(
        name="ablation",
        kind="ablation",
        shards=dataset.address,
        fixed=config.classifier,
        seeds=config.seeds,
        ablation=config.ablation,
        resources_per_trial=config.resources,
    )
    ablation = plan_sweep(sweep, folder / "ablation", preset, folder / "stages")
    planner = ReproductionPlanner(config, dataset, StagePlanner(preset, config.resources, dataset.in_store))
    models = {"stain": planner.stain(), "conditional": planner.conditional(), "few_shot": planner.few_shot()}
    sites = tuple(planner.sites())
    controls = tuple(planner.controls(ablation.arms))
    roles = planner.method.roles
    return Reproduction(config, preset, folder, dataset, planner.stains, roles, ablation, models, sites, controls)
