"""Small generators and classifiers of cells on the two public data sets, for generation.py and synthetic.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from tests.benchmarks.launch import call
from trainer.loop.log import logged_seconds

TYPES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
# The scale at which red cells are as large as Munich's, see stain.py.
CROP = "data.crop={barcelona: 0.8}"

BATCH = 32
# Networks small enough for a CPU, and a larger rate than in the configurations, for so few steps; the same for all.
SMALL = (
    "model.generator.width=32",
    "model.generator.blocks=[1,1,1]",
    "model.critic.width=32",
    "model.critic.blocks=[1,1,1]",
    "model.classifier.width=32",
    "model.classifier.blocks=[1,1,1]",
    *(f"model.{learner}_optimizer.learning_rate=0.0005" for learner in ("generator", "critic", "classifier")),
    "model.generator_optimizer.average_decay=0.99",
)
# Of those whose critic is to be near its best at all times; the thesis's five leave few moves of the generator.
WASSERSTEIN_STEPS = 2

# name -> the model, and what differs from its configuration.
FEW_SHOT: dict[str, tuple[str, ...]] = {
    "few_shot_meta": ("model=few_shot_meta",),
    "without meta-training": ("model=few_shot_meta", "model.meta=false"),
    "figr": ("model=figr",),
    "mine_gan": ("model=mine_gan",),
    "fast_gan": ("model=fast_gan",),
    "diff_augment": ("model=diff_augment",),
}
SHOTS = 8
ROUNDS = 5  # of an episode: half the thesis's, so that twice as many episodes can be played
# Moves of the learners in a round.
ROUND_MOVES = {"few_shot_meta": 7, "figr": 2}
SMALL_FEW_SHOT = ("model.generator.width=8", "model.discriminator.width=16", f"model.inner.rounds={ROUNDS}")
SMALL_ENCODER = "model.encoder.width=8"

CLASSIFIER = (
    "model=senet_small_ge",
    "data/augment=quarter_turns",
    "train.global_batch=32",
    "optimizer.learning_rate=0.002",
    "optimizer.average_decay=0.99",
)


@dataclass(frozen=True)
class Benchmark:
    """Where it works, on what, and how long the generators learn."""

    work: Path
    barcelona: str
    munich: str
    images: int
    rare_images: int
    episodes: int
    seeds: int
    passes: int
    size: int

    def build(self, name: str, *options: str) -> Dataset:
        """Both data sets, at twice the generators' size, so that what is stored of either is resized to be seen."""
        root = self.work / name
        call(
            "build_shards",
            f"shards={root}",
            f"barcelona={self.barcelona}",
            f"munich={self.munich}",
            "promyelocytes=promyelocyte",
            f"stored_size={2 * self.size}",
            "ratio=[0.55,0.05,0.4]",
            *options,
        )
        return Dataset.open(root)

    def data(self, types: Sequence[str] | None, *domains: str) -> list[str]:
        """What every training of a generator or classifier is shown."""
        chosen = [f"data.cell_types={_list(types)}"] if types else []
        return [f"data.domains={_list(domains)}", *chosen, CROP, f"data.image_size={self.size}", "data.threads=1"]

    def train_classifier(self, dataset: Dataset, name: str, data: Sequence[str], *options: str) -> Path:
        """A small classifier. A pass is as many images as Barcelona has for training, whatever the data set."""
        run = self.work / name
        call(
            "train_classifier",
            f"shards={dataset.root}",
            f"run={run}",
            *CLASSIFIER,
            *data,
            f"train.epochs={self.passes}",
            "train.iterations_per_epoch=66",
            *options,
        )
        return run

    def train_conditional(
        self, model: str, dataset: Dataset, name: str, data: Sequence[str], images: int, batch: int = BATCH
    ) -> Path:
        """A conditional generator, until its critic has seen so many real images."""
        run = self.work / name
        steps = WASSERSTEIN_STEPS if model in ("c_wgan_gp", "cwgan_gp") else 1
        call(
            "train_conditional_gan",
            f"shards={dataset.root}",
            f"run={run}",
            f"model={model}",
            *data,
            *SMALL,
            f"model.critic_steps={steps}",
            f"train.global_batch={batch}",
            "train.epochs=4",
            f"train.iterations_per_epoch={max(1, images // (batch * steps * 4))}",
        )
        return run

    def train_few_shot(
        self, name: str, dataset: Dataset, run_name: str, data: Sequence[str], rare: Sequence[str]
    ) -> Path:
        """A few-shot generator: on the rich types where it learns from them, then on each rare one."""
        run, options = self.work / run_name, list(FEW_SHOT[name])
        rich_images = self.episodes * ROUNDS * ROUND_MOVES["few_shot_meta"] * SHOTS
        if name in ROUND_MOVES:
            episodes = rich_images // (ROUNDS * ROUND_MOVES[name] * SHOTS)
            options += [f"train.global_batch={SHOTS}", f"train.iterations_per_epoch={max(1, episodes // 4)}"]
        elif name == "mine_gan":
            steps = rich_images // (2 * BATCH)  # a move of each of two learners
            options += [f"train.global_batch={BATCH}", f"train.iterations_per_epoch={max(1, steps // 4)}"]
        if "model=few_shot_meta" in options:
            options.append(SMALL_ENCODER)
        call(
            "train_few_shot_gan",
            f"shards={dataset.root}",
            f"run={run}",
            *options,
            *data,
            *SMALL_FEW_SHOT,
            f"rare_types={_list(rare)}",
            f"shots={SHOTS}",
            f"adaptation.images={self.rare_images}",
            "train.epochs=4",
        )
        return run

    def score(self, run: Path, dataset: Dataset, judge: Path, count: int, types: Sequence[str] = ()) -> dict[str, Any]:
        """Draw `count` images of each type and score them; the record of `evaluate.py bank=`."""
        bank = run.parent / f"bank-{run.name}"
        chosen = [f"cell_types={_list(types)}"] if types else []
        call("synthesize", f"run={run}", f"bank={bank}", f"count={count}", *chosen)
        if not list((bank / "evaluation").glob("*.json")):
            log = bank.with_suffix(".evaluation.log")
            call("evaluate", f"bank={bank}", f"shards={dataset.root}", f"classifier={judge}", log=log)
        (path,) = (bank / "evaluation").glob("*.json")
        record: dict[str, Any] = json.loads(path.read_text())
        return record | {"minutes": _minutes(run)}


def _minutes(run: Path) -> float:
    """Wall time of a training's logged steps, as far as this machine did nothing else."""
    return sum(map(logged_seconds, [run, *sorted((run / "adapted").glob("*"))])) / 60


def _list(words: Sequence[str]) -> str:
    return f"[{','.join(words)}]"
