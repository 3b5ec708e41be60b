"""Stages of a reproduction beside its ablation: rivals, scores, classifiers of one site, controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.banks.balance import training_counts
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.shards.store import Root
from trainer.experiments.ablation import Arm, choose_stains, method_stages
from trainer.experiments.launches import StagePlanner
from trainer.experiments.method_stages import CellTypeRoles
from trainer.experiments.reproduction_config import ReproductionConfig
from trainer.experiments.stages import Inputs, Stage
from trainer.runs.arguments import written

# Scored images are other ones than those that classifiers are trained on.
_SCORED_SEED = 1
# A judge is none of the experiments' classifiers.
_JUDGE_SEED = 1_000_003


@dataclass(frozen=True)
class SiteArm:
    """An arm of the experiment between two sites."""

    title: str
    normalize: bool = True
    generate: bool = True
    overrides: tuple[str, ...] = ()  # arguments of train_classifier.py


SITE_ARMS = {
    "full": SiteArm("Full method"),
    "without_ge": SiteArm("Without gather-excite", overrides=("model.ge=false",)),
    "without_normalization": SiteArm("Without stain normalisation", normalize=False),
    "without_generation": SiteArm("Without generated images", generate=False),
    "original": SiteArm("Original data", normalize=False, generate=False),
}


# Arms of the ablation that are trained under the thesis's protocol too.
CONTROL_ARMS = ("original", "full")


@dataclass(frozen=True)
class Scored:
    """A model's training and the stage that scores it."""

    run: Stage
    score: Stage
    bank: Stage | None = None  # the generated images that are scored


@dataclass(frozen=True)
class SiteTraining:
    """A classifier trained on one site's images, or on those of both."""

    arm: str  # of SITE_ARMS
    site: str
    seed: int
    run: Stage
    score: Stage | None  # on the other site's images


@dataclass(frozen=True)
class Control:
    """A classifier trained under the thesis's protocol on an arm's data: balanced first, split afterwards."""

    arm: str  # of the ablation
    generator_seed: int | None  # of the generators of its images; None: no generator made any
    seed: int
    run: Stage


class ReproductionPlanner:
    """Stages of the rivals, of their scores and of the two sites, on the same data as the ablation's."""

    def __init__(self, config: ReproductionConfig, dataset: Dataset, stages: StagePlanner) -> None:
        self._config, self._dataset, self._stages = config, dataset, stages
        self._proposed = config.ablation.models
        self._shards: Root = dataset.root
        self.stains = choose_stains(config.ablation, dataset)
        self.method = method_stages(config.ablation, dataset, stages)
        self._normalized = self.method.normalized(self._shards, *self.stains)
        self._filled = self.method.filled(self._normalized)
        judge = (*config.judge, f"seed={_JUDGE_SEED}")
        self._stain_judge = self._classifier("judge of stains", self._shards, judge)
        self._cell_judge = self._classifier("judge of cells", self._normalized, judge)
        # Distances are measured in the features of Inception where its weights are at hand, else of a judge.
        # Imported here: a mistake in the preset is told before torch is imported.
        from trainer.metrics.feature_space import inception_file

        inception = inception_file(config.inception_weights) if config.features == "inception" else None
        self._inception = ("features=inception", f"inception_weights={inception.absolute()}") if inception else ()
        lpips = config.lpips_weights
        self._lpips = (f"lpips_weights={Path(lpips).absolute()}",) if lpips else ()

    def stain(self) -> dict[str, Scored]:
        """W-CycleGAN-GP, which normalises all other data, and its rivals."""
        found = {}
        for model, name, arguments in self._models("stain", self._config.stain_models, "stain GAN", "stain"):
            run = self.method.stain_run(self._shards, *self.stains, name, arguments)
            inputs: Inputs = {"run": run} if self._inception else {"run": run, "features": self._stain_judge}
            found[model] = Scored(run, self._score(run.name, self._inception, inputs))
        return found

    def conditional(self) -> dict[str, Scored]:
        """C-WGAN-GP and its rivals, on the moderate types."""
        types, found = self.method.roles.moderate, {}
        rivals = self._config.conditional_models
        for model, name, arguments in self._models("conditional", rivals, "C-WGAN-GP", "generator"):
            run = self.method.conditional_run(self._normalized, types, name, arguments)
            found[model] = self._scored(run, self._normalized, types)
        return found

    def few_shot(self) -> dict[str, Scored]:
        """The meta-learned generator, its rivals and C-WGAN-GP, on the rare types."""
        roles, found = self.method.roles, {}
        rare = roles.made(roles.rare)
        rivals = self._config.few_shot_models
        for model, name, arguments in self._models("few_shot", rivals, "few-shot GAN", "few-shot"):
            run = self.method.few_shot_run(self._filled, roles.rich, roles.rare, name, arguments)
            found[model] = self._scored(run, self._filled, rare)
        alone = self.method.conditional_alone(self._normalized)
        return found | {self._proposed["conditional"]: self._scored(alone, self._normalized, rare)}

    def sites(self) -> list[SiteTraining]:
        """Classifiers of one stain's images alone, with and without each part, scored on the other's."""
        to, of = self.stains
        found = []
        for site, other in ((to, of), (of, to)):
            for name, arm in SITE_ARMS.items():
                data, domains = self._site_data(site, arm), self._domains(site, arm.normalize)
                merged = (f"data.domains={written(domains)}", *self._config.classifier, *arm.overrides)
                for seed in self._config.seeds:
                    title = f"{site} {name.replace('_', ' ')} seed {seed}"
                    run = self._classifier(title, data, (*merged, f"seed={seed}"))
                    inputs: Inputs = {"run": run, "shards": self._shards}
                    score = self._score(title, ("split=test", f"domain={other}"), inputs)
                    found.append(SiteTraining(name, site, seed, run, score))
        # The ablation has every other arm on the images of both sites.
        for seed in self._config.seeds:
            arguments = (*self._config.classifier, f"seed={seed}")
            run = self._classifier(f"both without generation seed {seed}", self._normalized, arguments)
            found.append(SiteTraining("without_generation", "both", seed, run, None))
        return found

    def controls(self, arms: Sequence[Arm]) -> Iterator[Control]:
        """Classifiers of CONTROL_ARMS, the ends of the thesis's gain in accuracy, trained under its protocol."""
        for arm in (arm for arm in arms if arm.name in CONTROL_ARMS):
            images = f" generator seed {arm.generator_seed}" if arm.generator_seed else ""
            for seed in self._config.seeds:
                arguments = (*self._config.classifier, f"seed={seed}", "protocol=balance_first")
                run = self._classifier(f"control {arm.name}{images} seed {seed}", arm.dataset, arguments)
                yield Control(arm.name, arm.generator_seed, seed, run)

    def _site_data(self, site: str, arm: SiteArm) -> Stage | Root:
        """A site's images, and those of its own C-WGAN-GP: no label of the other site decides any of it."""
        parent: Stage | Root = self._normalized if arm.normalize else self._shards
        if not arm.generate:
            return parent
        per_origin = training_counts(self._dataset, [site])
        counts = {name: sum(each.values()) for name, each in per_origin.items() if each["real"]}
        most = self._config.ablation.per_type or max(counts.values(), default=0)
        lacking = {name: most - count for name, count in counts.items() if count < most}
        if len(counts) < 2 or not lacking:
            raise UserError(
                f"{self._dataset.root}: {site} has training images of {len(counts)} types, none of them fewer than "
                f"{most}: there is nothing to generate for it; set ablation.per_type"
            )
        method = dataclasses.replace(self.method, roles=CellTypeRoles((), tuple(counts), (), most, lacking))
        suffix = f"{site}{'' if arm.normalize else ' unnormalized'}"
        domains = written(self._domains(site, arm.normalize))
        run = method.conditional_run(parent, tuple(counts), f"C-WGAN-GP {suffix}", (f"data.domains={domains}",))
        return method.balanced(parent, (method.bank(run),), f"balanced data {suffix}", (f"domains={domains}",))

    def _domains(self, site: str, normalized: bool) -> list[str]:
        """The domains of a site's images in the data set."""
        a, b = self.stains
        if normalized and self.method.by_type:
            return [site, f"{site}_as_{b if site == a else a}"]
        return [f"{b}_as_{a}" if normalized and site == b else site]

    def _models(
        self, kind: str, models: Mapping[str, Sequence[str]], title: str, prefix: str
    ) -> list[tuple[str, str, tuple[str, ...]]]:
        """(model, name of its training, its own arguments), the method's own model first, whose training is `title`.

        The method's own has the arguments of the method's stage, and so is that stage. A rival's name is its model,
        unless its arguments name another.
        """
        found: list[tuple[str, str, tuple[str, ...]]] = [(self._proposed[kind], title, ())]
        for name, own in models.items():
            if name != self._proposed[kind]:
                named = any(argument.startswith("model=") for argument in own)
                found.append((name, f"{prefix} {name}", (*(() if named else (f"model={name}",)), *own)))
        return found

    def _scored(self, run: Stage, shards: Stage, types: Sequence[str]) -> Scored:
        """A generator, images of it, and their score against real ones."""
        bank = self.method.images(run, f"{run.name} scored", self._config.scored_images, types, _SCORED_SEED)
        inputs: Inputs = {"bank": bank, "shards": shards, "classifier": self._cell_judge}
        return Scored(run, self._score(run.name, (*self._inception, *self._lpips), inputs), bank)

    def _score(self, name: str, arguments: Sequence[str], inputs: Inputs) -> Stage:
        return self._stages.stage(f"score of {name}", "evaluate", arguments, inputs, None)

    def _classifier(self, name: str, shards: Stage | Root, arguments: Sequence[str]) -> Stage:
        return self._stages.training(name, "train_classifier", arguments, shards)
