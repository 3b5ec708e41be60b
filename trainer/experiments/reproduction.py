"""The thesis's whole experiment, planned as stages and two sweeps: every model, every rival, the ablation, two sites.

REPRODUCTION/stages holds what launchers made, ablation/ and comparison/ the two sweeps, reproduction.json where each
model's run and score lies: the report is written from that file alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipeline.banks.balance import training_counts
from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Root
from trainer.experiments.ablation import AblationConfig, choose_stains, method_stages
from trainer.experiments.method_stages import CellTypeRoles, Compose, MethodStages, make_stage
from trainer.experiments.resources import Resources
from trainer.experiments.results import TRIALS_FOLDER
from trainer.experiments.stages import Inputs, Stage, describe, in_order
from trainer.experiments.sweep import Sweep, composer, plan_sweep
from trainer.experiments.sweep_config import SweepConfig
from trainer.runs.arguments import written
from trainer.runs.configuration import read_file

PLAN_FILE, AUDIT_FILE = "reproduction.json", "audit.json"
PROPOSED = {"stain": "w_cyclegan_gp", "conditional": "c_wgan_gp", "few_shot": "few_shot_meta"}
# What is drawn to be scored is not what classifiers learn from.
_SCORED_SEED = 1
# That of no experiment's classifier: a judge is none of those.
_JUDGE_SEED = 1_000_003
# An arm of the two sites' experiment -> what it is for people, whether images are normalised, generated ones beside
# them, and what its classifier is told.
SITE_ARMS: dict[str, tuple[str, bool, bool, tuple[str, ...]]] = {
    "full": ("Full method", True, True, ()),
    "without_ge": ("Without gather-excite", True, True, ("model.ge=false",)),
    "without_normalization": ("Without stain normalisation", False, True, ()),
    "without_generation": ("Without generated images", True, False, ()),
    "original": ("Original data", False, False, ()),
}


@dataclass(frozen=True)
class ReproductionConfig:
    """A preset: how large each part of the experiment is.

    note: what whoever reads the report is to know of these sizes.
    phantoms: cell type -> images to be rendered where no raw folder is given; empty renders none. phantom_size: their
    side in pixels. build: arguments of build_shards.py, beside the sources.
    ablation: see AblationConfig; its stain, conditional and few_shot are the arguments of all models of their kind.
    stain_models, conditional_models, few_shot_models: the rivals, model -> arguments of its own, over those. One of few
    shots may have any name where model= is among its arguments.
    classifier: arguments of train_classifier.py for the ablation and the two sites; seeds: of these.
    judge: of the classifier that has seen real images alone, which names what generated ones show.
    features: what sets of images are compared in, the judge's or Inception's, which makes a Fréchet distance an FID.
    scored_images: drawn of each type to be scored.
    comparison, models, model_settings: arguments for all classifiers of figure 52, their names, and what differs.
    resources: of each stage and each trial.
    """

    note: str = ""
    phantoms: dict[str, int] = field(default_factory=dict)
    phantom_size: int = 48
    build: list[str] = field(default_factory=list)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    stain_models: dict[str, list[str]] = field(default_factory=dict)
    conditional_models: dict[str, list[str]] = field(default_factory=dict)
    few_shot_models: dict[str, list[str]] = field(default_factory=dict)
    classifier: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    judge: list[str] = field(default_factory=list)
    features: Literal["judge", "inception"] = "judge"
    scored_images: int = 100
    comparison: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    model_settings: dict[str, list[str]] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        for name, count in self.phantoms.items():
            if name not in CELL_TYPES or count < 1:
                raise ValueError(f"phantoms.{name}={count}: name a cell type and how many images, at least 1")
        if self.scored_images < 2:
            raise ValueError(f"scored_images={self.scored_images}: must be at least 2")


def read_preset(path: Path, changes: Sequence[str]) -> ReproductionConfig:
    """The preset of a file, with `changes` (key=value, the command line's) laid over it; UserErrors of `read_file`."""
    return read_file(ReproductionConfig, path, changes, "preset")


@dataclass(frozen=True)
class Scored:
    """A model's run, and the stage that scores it. bank: of a generator, what was scored."""

    run: Stage
    score: Stage
    bank: Stage | None = None


@dataclass(frozen=True)
class SiteTraining:
    """A classifier of one site's images, or of both: one of SITE_ARMS, of one seed. score: on the other site's."""

    arm: str
    site: str
    seed: int
    run: Stage
    score: Stage | None


@dataclass(frozen=True)
class Reproduction:
    """All that is to be done, known before any of it but the comparison, whose images have to be there first."""

    config: ReproductionConfig
    preset: str
    folder: Path
    dataset: Dataset
    stains: tuple[str, str]
    roles: CellTypeRoles
    ablation: Sweep
    models: Mapping[str, Mapping[str, Scored]]
    sites: tuple[SiteTraining, ...]
    compose: Callable[[str, Sequence[str]], Any]
    where: Path

    @property
    def stages_folder(self) -> Path:
        return self.folder / "stages"

    @property
    def stages(self) -> list[Stage]:
        """Every stage, each after those that it needs."""
        scores = [each.score for models in self.models.values() for each in models.values()]
        sites = [each.score or each.run for each in self.sites]
        return in_order([*self.ablation.stages, *scores, *sites])

    @property
    def stages_to_run(self) -> list[Stage]:
        return in_order(self.stages, self.stages_folder)

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
        return plan_sweep(config, self.folder / "comparison", self.compose, self.where)

    def describe(self) -> list[str]:
        """Lines for people: every stage and trial that is known, how it stands, and its command line."""
        stages, config = self.stages, self.config
        waiting = len(in_order(stages, self.stages_folder))
        return [
            f"reproduction {self.preset}: {len(stages)} stages, {waiting} of them to run; {len(self.ablation.trials)} "
            f"trainings of the ablation, {len(config.models) * len(config.seeds)} to compare classifiers by",
            *describe(stages, self.stages_folder, config.resources),
        ]

    def write(self) -> None:
        """Write reproduction.json: what the report is written from."""

        def place(stage: Stage) -> str:
            return os.path.relpath(stage.folder(self.stages_folder), self.folder)

        content = {
            "preset": self.preset,
            "config": dataclasses.asdict(self.config),
            "dataset": {"path": self.dataset.address, "content_hash": self.dataset.content_hash},
            "stains": self.stains,
            "roles": {
                **{name: list(getattr(self.roles, name)) for name in ("rich", "moderate", "rare")},
                "per_type": self.roles.per_type,
                "lacking": dict(self.roles.lacking),
            },
            "models": {
                kind: {
                    name: {"run": place(each.run)} | ({} if each.bank is None else {"bank": place(each.bank)})
                    for name, each in models.items()
                }
                for kind, models in self.models.items()
            },
            "sites": [
                {
                    "arm": each.arm,
                    "title": SITE_ARMS[each.arm][0],
                    "site": each.site,
                    "seed": each.seed,
                    "run": place(each.run),
                }
                for each in self.sites
            ],
            "both_sites": [
                {
                    "arm": trial.arm,
                    "title": SITE_ARMS[trial.arm][0],
                    "seed": trial.seed,
                    "run": f"ablation/{TRIALS_FOLDER}/{trial.name}",
                }
                for trial in self.ablation.trials
                if trial.arm in SITE_ARMS
            ],
            "stages": {stage.name: place(stage) for stage in self.stages},
        }
        replace_through(self.folder / PLAN_FILE, (json.dumps(content, indent=1) + "\n").encode())


def plan_reproduction(
    config: ReproductionConfig,
    preset: Path,
    folder: Path,
    shards: Root,
    compose: Callable[[str, Sequence[str]], Any],
) -> Reproduction:
    """Plan every stage and the ablation.

    preset: the file of `config`, which UserErrors name. compose: as of `plan_sweep`.
    """
    folder, dataset = folder.resolve(), Dataset.open(shards)
    resources = config.resources
    sweep = SweepConfig(
        name="ablation",
        kind="ablation",
        shards=dataset.address,
        fixed=config.classifier,
        seeds=config.seeds,
        ablation=config.ablation,
        resources_per_trial=resources,
    )
    ablation = plan_sweep(sweep, folder / "ablation", compose, preset, folder / "stages")
    planner = _Planner(config, dataset, composer(compose, preset, resources, dataset.in_store))
    models = {"stain": planner.stain(), "conditional": planner.conditional(), "few_shot": planner.few_shot()}
    sites = tuple(planner.sites())
    return Reproduction(
        config,
        preset.stem,
        folder,
        dataset,
        planner.stains,
        planner.method.roles,
        ablation,
        models,
        sites,
        compose,
        preset,
    )


class _Planner:
    """Stages of the rivals, of their scores and of the two sites, on the same data as the ablation's."""

    def __init__(self, config: ReproductionConfig, dataset: Dataset, compose: Compose) -> None:
        self._config, self._dataset, self._compose = config, dataset, compose
        self._shards: Root = dataset.root
        self.stains = choose_stains(config.ablation, dataset)
        self._threads = config.resources.threads
        self.method: MethodStages = method_stages(config.ablation, dataset, self._threads, compose)
        self._normalized = self.method.normalized(self._shards, *self.stains)
        self._filled = self.method.filled(self._normalized)
        judge = (*config.judge, f"seed={_JUDGE_SEED}")
        self._stain_judge = self._classifier("judge of stains", self._shards, judge)
        self._cell_judge = self._classifier("judge of cells", self._normalized, judge)

    def stain(self) -> dict[str, Scored]:
        """W-CycleGAN-GP, whose images everything else learns from, and its rivals."""
        found = {}
        for model, own in _with_proposed("stain", self._config.stain_models):
            # The proposed one is the one that normalised: of the same arguments, and so the same stage.
            rival = model != PROPOSED["stain"]
            name, arguments = (f"stain {model}", (f"model={model}", *own)) if rival else ("stain GAN", ())
            run = self.method.stain_run(self._shards, *self.stains, name, arguments)
            features = self._features(self._stain_judge)
            inputs: Inputs = {"run": run, **features[0]}
            score = self._stage(f"score of {run.name}", "evaluate", features[1], inputs, None)
            found[model] = Scored(run, score)
        return found

    def conditional(self) -> dict[str, Scored]:
        """C-WGAN-GP and its rivals, of the moderate types."""
        roles, found = self.method.roles, {}
        for model, own in _with_proposed("conditional", self._config.conditional_models):
            rival = model != PROPOSED["conditional"]
            name, arguments = (f"generator {model}", (f"model={model}", *own)) if rival else ("C-WGAN-GP", ())
            run = self.method.conditional_run(self._normalized, roles.moderate, name, arguments)
            found[model] = self._scored(run, self._normalized, roles.moderate)
        return found

    def few_shot(self) -> dict[str, Scored]:
        """The meta-learned generator and its rivals, and C-WGAN-GP, of the rare types."""
        roles, found = self.method.roles, {}
        rare = roles.made(roles.rare)
        for model, own in _with_proposed("few_shot", self._config.few_shot_models):
            rival = model != PROPOSED["few_shot"]
            # A name is what is compared; what it is may be said by a model= of its own.
            told = own if any(argument.startswith("model=") for argument in own) else (f"model={model}", *own)
            name, arguments = (f"few-shot {model}", told) if rival else ("few-shot GAN", ())
            run = self.method.few_shot_run(self._filled, roles.rich, roles.rare, name, arguments)
            found[model] = self._scored(run, self._filled, rare)
        alone = self.method.conditional_alone(self._normalized)
        return found | {"c_wgan_gp": self._scored(alone, self._normalized, rare)}

    def sites(self) -> list[SiteTraining]:
        """Classifiers of either stain's images alone, with and without each part, scored on the other's."""
        to, of = self.stains
        found = []
        for site, other in ((to, of), (of, to)):
            of_arm = {
                (normalize, generate): self._site_data(site, normalize=normalize, generate=generate)
                for _, normalize, generate, _ in SITE_ARMS.values()
            }
            for arm, (_, normalize, generate, own) in SITE_ARMS.items():
                domain = self._domain(site, normalize)
                told = (f"data.domains={written([domain])}", *self._config.classifier, *own)
                for seed in self._config.seeds:
                    name = f"{site} {arm.replace('_', ' ')} seed {seed}"
                    run = self._classifier(name, of_arm[normalize, generate], (*told, f"seed={seed}"))
                    inputs: Inputs = {"run": run, "shards": self._shards}
                    told_score = ("split=test", f"domain={other}")
                    score = self._stage(f"score of {name}", "evaluate", told_score, inputs, None)
                    found.append(SiteTraining(arm, site, seed, run, score))
        # Of both sites' images the ablation has every arm but this.
        for seed in self._config.seeds:
            told = (*self._config.classifier, f"seed={seed}")
            run = self._classifier(f"both without generation seed {seed}", self._normalized, told)
            found.append(SiteTraining("without_generation", "both", seed, run, None))
        return found

    def _site_data(self, site: str, *, normalize: bool, generate: bool) -> Stage | Root:
        """A site's images, those that its own C-WGAN-GP makes beside them: no label of the other site is in it."""
        parent: Stage | Root = self._normalized if normalize else self._shards
        if not generate:
            return parent
        counts = {
            name: sum(each.values()) for name, each in training_counts(self._dataset, [site]).items() if each["real"]
        }
        most = self._config.ablation.per_type or max(counts.values(), default=0)
        lacking = {name: most - count for name, count in counts.items() if count < most}
        if len(counts) < 2 or not lacking:
            raise UserError(
                f"{self._dataset.root}: {site} has training images of {len(counts)} types, none of them fewer than "
                f"{most}: there is nothing to generate for it; set ablation.per_type"
            )
        method = dataclasses.replace(
            self.method, roles=CellTypeRoles((), tuple(counts), (), most, lacking), compose=self._compose
        )
        suffix = f"{site}{'' if normalize else ' unnormalized'}"
        domains = written([self._domain(site, normalize)])
        run = method.conditional_run(parent, tuple(counts), f"C-WGAN-GP {suffix}", (f"data.domains={domains}",))
        told = (f"per_type={most}", f"domains={domains}")
        inputs: Inputs = {"shards": parent, "banks": (method.bank(run),)}
        return self._stage(f"balanced data {suffix}", "balance", told, inputs, "out")

    def _domain(self, site: str, normalized: bool) -> str:
        """What a site's images are filed under."""
        to, of = self.stains
        return f"{of}_as_{to}" if normalized and site == of else site

    def _scored(self, run: Stage, shards: Stage, types: Sequence[str]) -> Scored:
        """A generator, images of it, and their score against real ones."""
        bank = self.method.images(run, f"{run.name} scored", self._config.scored_images, types, _SCORED_SEED)
        inputs: Inputs = {"bank": bank, "shards": shards, "classifier": self._cell_judge}
        told = ("features=inception",) if self._config.features == "inception" else ()
        return Scored(run, self._stage(f"score of {run.name}", "evaluate", told, inputs, None), bank)

    def _features(self, judge: Stage) -> tuple[Inputs, tuple[str, ...]]:
        """What a stain run is compared in, as inputs and arguments."""
        return ({}, ("features=inception",)) if self._config.features == "inception" else ({"features": judge}, ())

    def _classifier(self, name: str, shards: Stage | Root, arguments: Sequence[str]) -> Stage:
        told = (f"data.threads={self._threads}", *arguments)
        return self._stage(name, "train_classifier", told, {"shards": shards}, "run")

    def _stage(self, name: str, launcher: str, arguments: Sequence[str], inputs: Inputs, output: str | None) -> Stage:
        one_process = launcher == "evaluate"
        return make_stage(self._compose, name, launcher, arguments, inputs, output, one_process=one_process)


def _with_proposed(kind: str, models: Mapping[str, Sequence[str]]) -> list[tuple[str, tuple[str, ...]]]:
    """The thesis's own model first, then the rivals, each with its own arguments."""
    proposed = PROPOSED[kind]
    rivals = [(name, tuple(own)) for name, own in models.items() if name != proposed]
    return [(proposed, ()), *rivals]
