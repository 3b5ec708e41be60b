"""Generators of cells against each other, on the two public data sets; whether their images help: see synthetic.py.

usage:
  uv run python -m tests.benchmarks.generation barcelona=RAW munich=RAW work=DIR out=FILE.json
      [parts=conditional,few_shot] [images=64000] [rare_images=6000] [episodes=100] [passes=15] [size=32]
conditional: C-WGAN-GP and its five rivals learn from `images` of Barcelona's eight types; an independent classifier,
trained on real images, says what their images show.
few_shot: the meta-learned generator, the same network without meta-training, C-WGAN-GP and the other rivals learn
to make three rare types, from `rare_images` shown of each. What is shown once to each of the learners that move
counts once for each. Those that learn from the rich types before are shown equally many of their images, as many as
`episodes` of the meta-learned generator show.
Beside FILE.json goes a sheet of generated images of every model, for each part. Two trainings run
at a time, one thread each. Interrupted, the same command goes on.
"""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.catalog import Dataset
from tests.benchmarks.launch import call
from trainer.experiments.machine import describe_machine
from trainer.loop.log import logged_seconds
from trainer.reports.sheets import draw_sheet
from trainer.tasks.generation.images import to_intensity

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
RARE = ("monoblast", "promyelocyte", "smudge cell")
# The scale at which red cells are as large as Munich's, see stain.py.
CROP = "data.crop={barcelona: 0.8}"

CONDITIONAL = ("c_wgan_gp", "cwgan_gp", "ac_gan", "cgan", "info_gan", "dcgan")
BATCH = 32
# DCGAN has a pair of networks for each of the eight types, whose batch norms need more than four images.
BATCHES = {"dcgan": 128}
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

SHEET = 3  # images of each type and model on a sheet

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


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    parts = arguments.get("parts", "conditional,few_shot").split(",")
    benchmark = Benchmark(
        work=Path(arguments["work"]),
        barcelona=arguments["barcelona"],
        munich=arguments["munich"],
        **{
            name: int(arguments.get(name, default))
            for name, default in (
                ("images", 64_000),
                ("rare_images", 6_000),
                ("episodes", 100),
                ("seeds", 3),
                ("passes", 15),
                ("size", 32),
            )
        },
    )
    dataset = benchmark.build("dataset")
    out = Path(arguments["out"])
    report = json.loads(out.read_text()) if out.exists() else {}
    with ThreadPoolExecutor(2) as pool:
        for name, part in (("conditional", conditional), ("few_shot", few_shot)):
            if name in parts:
                settings = {key: value for key, value in vars(benchmark).items() if isinstance(value, int)}
                report[name] = {"machine": describe_machine(), "settings": settings} | part(benchmark, dataset, pool)
                out.write_text(json.dumps(report, indent=1))
    if "conditional" in parts:
        draw(out.with_name(f"{out.stem}_conditional.png"), benchmark.work, CONDITIONAL, TYPES)
    if "few_shot" in parts:
        draw(
            out.with_name(f"{out.stem}_few_shot.png"),
            benchmark.work,
            [*map(_rare_run, FEW_SHOT), "rare-c_wgan_gp"],
            RARE,
        )


def conditional(benchmark: Benchmark, dataset: Dataset, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Six conditional generators of Barcelona's eight types."""
    data = benchmark.data(TYPES, "barcelona")
    judging = pool.submit(benchmark.train_classifier, dataset, "judge", data)
    training = {
        model: pool.submit(
            benchmark.train_conditional, model, dataset, model, data, benchmark.images, BATCHES.get(model, BATCH)
        )
        for model in CONDITIONAL
    }
    judge = judging.result()
    results = {}
    for model, run in training.items():
        record = benchmark.score(run.result(), dataset, judge, 100)
        results[model] = {**_agreement(record), **_kept(record["all"]), "minutes": record["minutes"]}
        print(f"{model:12s} of the type asked for {results[model]['agreement']['value']:.1%}", flush=True)
    return {"data": _facts(dataset, judge), "results": results}


def few_shot(benchmark: Benchmark, dataset: Dataset, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Seven generators of three types of which there are few images."""
    domains = ("barcelona", "munich")
    judging = pool.submit(
        benchmark.train_classifier,
        dataset,
        "judge-of-rare",
        benchmark.data(None, *domains),
        "data.sampling=class_balanced",
    )
    data = benchmark.data(None, *domains)
    training = {
        name: pool.submit(benchmark.train_few_shot, name, dataset, _rare_run(name), data, RARE) for name in FEW_SHOT
    }
    # Four moves of three learners, on images of each type in turn.
    images = len(RARE) * benchmark.rare_images * WASSERSTEIN_STEPS // (WASSERSTEIN_STEPS + 2)
    training["c_wgan_gp"] = pool.submit(
        benchmark.train_conditional,
        "c_wgan_gp",
        dataset,
        "rare-c_wgan_gp",
        benchmark.data(RARE, *domains),
        images,
        len(RARE) * SHOTS,
    )
    judge = judging.result()
    results = {}
    for name, run in training.items():
        record = benchmark.score(run.result(), dataset, judge, 100, RARE)
        results[name] = {
            **_agreement(record),
            "per_type": {cell_type: _kept(each) for cell_type, each in record["per_type"].items()},
            "minutes": record["minutes"],
        }
        print(f"{name:22s} of the type asked for {results[name]['agreement']['value']:.1%}", flush=True)
    return {"data": _facts(dataset, judge), "results": results}


def draw(path: Path, work: Path, runs: Sequence[str], types: Sequence[str]) -> None:
    """A sheet of the first images of each type (rows) that each run has made (columns). No image of it is real."""
    columns, titles = [], []
    for run in runs:
        bank = ImageBank.open(work / f"bank-{run}")
        first = np.stack([np.flatnonzero(bank.labels == bank.cell_types.index(name))[:SHEET] for name in types])
        columns += [to_intensity(torch.from_numpy(bank.images(rows)).permute(0, 3, 1, 2)) for rows in first.T]
        titles += [run.removeprefix("rare-"), *[""] * (SHEET - 1)]
    draw_sheet(path, titles, columns, types)


def _rare_run(name: str) -> str:
    return f"rare-{name.replace(' ', '-')}"


def _agreement(record: dict[str, Any]) -> dict[str, Any]:
    """How many images the independent classifier gives the type that was asked for, in all and of each type."""
    generated = record["type_agreement"]["generated"]
    return {
        "agreement": generated["overall"]["accuracy"],
        "f1": generated["overall"]["f1"],
        "agreement_of_types": {
            name: each["measures"]["sensitivity"]["value"] for name, each in generated["per_type"].items()
        },
    }


def _kept(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name != "nearest_real"}


def _facts(dataset: Dataset, judge: Path) -> dict[str, Any]:
    scores = json.loads((judge / "evaluation/metrics.json").read_text())["scores"]
    return {
        "content_hash": dataset.content_hash,
        "judge": {name: scores["overall"][name] for name in ("accuracy", "balanced_accuracy")},
    }


def _minutes(run: Path) -> float:
    """Wall time of a training's logged steps, as far as this machine did nothing else."""
    return sum(map(logged_seconds, [run, *sorted((run / "adapted").glob("*"))])) / 60


def _list(words: Sequence[str]) -> str:
    return f"[{','.join(words)}]"


if __name__ == "__main__":
    main()
