"""A classifier in a laboratory that nobody trained on: each of three laboratories is left out in turn.

usage:
  uv run python -m tests.benchmarks.laboratories barcelona=RAW munich=RAW bccd=RAW weights=FILE work=DIR out=FILE.json
      [arms=ARM,...] [left_out=munich,bccd,none] [seeds=1] [images=38400] [at_once=2]
weights: timm's ImageNet weights of tf_efficientnet_lite0. An arm is the whole recipe but for what its name says. A run
learns from the laboratories that are not left out, by `images` shown; with `none`, from Barcelona alone, for the score
at home. Scores are of images that the run has not seen: all of the laboratory that is left out (the types that both
know), and Barcelona's test split. Every run is written to FILE.json as soon as it is scored, and the table is printed
at the end. `at_once` trainings run at a time, one thread each. Interrupted, the same command goes on.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tests.benchmarks.launch import call
from trainer.experiments.machine import describe_machine
from trainer.loop.log import logged_seconds
from trainer.metrics.evaluation import load_evaluations

TYPES = "basophil,eosinophil,erythroblast,immature granulocyte,lymphocyte,monocyte,neutrophil,platelet"
LABORATORIES = ("barcelona", "munich", "bccd")
SIZE, STORED, BATCH, EPOCHS = 96, 160, 64, 6
VIEWS = (1, 8)
RATIO = "ratio=[0.63,0.07,0.3]"
RECIPE = {
    "model": "efficientnet_lite_pretrained",
    "optimizer": "pretrained",
    "data/augment": "laboratory",
    "data.sampling": "domain_balanced",
    "nucleus_share": "0.43",
    "train.select_within": "0.01",
}
# name -> what differs from the recipe; "" leaves a setting out.
ARMS: dict[str, dict[str, str]] = {
    "whole recipe": {},
    "without the stretched channels": {"model.stretch": "false"},
    "without one scale": {"nucleus_share": "null"},
    "without other optics and backgrounds": {"data/augment": "stain", "data.augment.scale": "1.4"},
    "as before": {"model.stretch": "false", "nucleus_share": "null", "data/augment": "stain"},
    "from fresh weights": {"model.weights": "null"},
    "senet_small_ge": {"model": "senet_small_ge", "model.stretch": "true", "model.weights": ""},
    "mixup": {"train.mixup": "0.2"},
    "layer-wise rates": {"optimizer.layer_decay": "0.75"},
    "group norm": {"model.norm": "group"},
    "rare images repeated five times": {"data.most_repeats": "5"},
    "a narrow stain": {"data/augment": "stain", "data.augment.scale": "1.3"},
}


@dataclass(frozen=True)
class Benchmark:
    """Where it works, on what, and how long a run learns."""

    work: Path
    out: Path
    weights: str
    images: int
    lock: Lock

    @property
    def data(self) -> Path:
        return self.work / "data"

    def build(self, raw: dict[str, str]) -> None:
        """The three laboratories' images, all stored alike."""
        folders = [f"{name}={folder}" for name, folder in raw.items()]
        call("build_shards", f"shards={self.data}", *folders, f"stored_size={STORED}", "quality=95", RATIO)

    def measure(self, arm: str, left_out: str, seed: int) -> None:
        """Train a run and score it; nothing if that is done."""
        if self._find(arm, left_out, seed) is not None:
            return
        domains = ["barcelona"] if left_out == "none" else [name for name in LABORATORIES if name != left_out]
        run = self.work / "runs" / f"{arm.replace(' ', '_')}-{left_out}-{seed}"
        settings = RECIPE | {"model.weights": self.weights} | ARMS[arm]
        call(
            "train_classifier",
            f"shards={self.data}",
            f"run={run}",
            f"seed={seed}",
            *(f"{key}={value}" for key, value in settings.items() if value),
            f"data.domains=[{','.join(domains)}]",
            f"data.cell_types=[{TYPES}]",
            f"data.image_size={SIZE}",
            "data.threads=1",
            f"train.global_batch={BATCH}",
            f"train.epochs={EPOCHS}",
            f"train.iterations_per_epoch={self.images // (BATCH * EPOCHS)}",
        )
        # At home eight views are asked only where home is the question: they take longer than everything else.
        home = [("barcelona", "test", views) for views in (VIEWS if left_out == "none" else VIEWS[:1])]
        for domain, split, views in home + [(left_out, "all", views) for views in VIEWS if left_out != "none"]:
            where = (f"shards={self.data}", f"domain={domain}", f"split={split}", f"views={views}")
            call("evaluate", f"run={run}", *where, log=run / f"evaluate-{domain}-{views}.log")
        evaluations = [each.record for each in load_evaluations(run)]
        self._add(
            {
                "arm": arm,
                "left_out": left_out,
                "seed": seed,
                "images": self.images,
                "training_seconds": round(logged_seconds(run)),
                "scores": [_scores(each) for each in evaluations if len(each.dataset.domains) == 1],
            }
        )

    def results(self) -> list[dict[str, Any]]:
        """The runs that are scored."""
        runs: list[dict[str, Any]] = json.loads(self.out.read_text())["runs"] if self.out.exists() else []
        return runs

    def _find(self, arm: str, left_out: str, seed: int) -> dict[str, Any] | None:
        wanted = (arm, left_out, seed, self.images)
        same = (run for run in self.results() if (run["arm"], run["left_out"], run["seed"], run["images"]) == wanted)
        return next(same, None)

    def _add(self, run: dict[str, Any]) -> None:
        with self.lock:
            content = {"machine": describe_machine(), "size": SIZE, "runs": [*self.results(), run]}
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(content, indent=1))


def _scores(record: Any) -> dict[str, Any]:
    """Accuracy and balanced accuracy with their intervals, and each type's sensitivity, in per cent."""
    headline = {name: record.scores[name].format(brackets=True) for name in ("accuracy", "balanced_accuracy")}
    found = {name: row["sensitivity"].format() for name, row in record.scores.per_type.items() if row.count}
    data = record.dataset
    return (
        {"domain": data.domains[0], "split": data.split, "images": data.count, "views": record.views}
        | headline
        | {"sensitivity": found}
    )


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: accuracy on Barcelona's test split and balanced accuracy abroad, with one view and with eight."""
    lines = [
        "| arm | left out | seed | images shown | at home, 1 view (/ 8) | abroad, 1 / 8 views |",
        "|---|---|---|---|---|---|",
    ]
    for run in sorted(runs, key=lambda run: (run["left_out"], list(ARMS).index(run["arm"]), run["seed"])):
        home = [each["accuracy"] for each in run["scores"] if each["domain"] == "barcelona"]
        away = [each["balanced_accuracy"] for each in run["scores"] if each["domain"] == run["left_out"]]
        cells = (run["arm"], run["left_out"], run["seed"], run["images"], " / ".join(home), " / ".join(away) or "-")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments)
    raw = {name: options[name] for name in LABORATORIES}
    arms, left_out = options.get("arms", ",".join(ARMS)), options.get("left_out", "munich,bccd,none")
    out, images = Path(options["out"]), int(options.get("images", 38400))
    benchmark = Benchmark(Path(options["work"]), out, options["weights"], images, Lock())
    if not (benchmark.data / "dataset.json").exists():
        benchmark.build(raw)
    chosen = [arm for arm in ARMS if arm in arms.split(",")]
    tries = [
        (arm, name, seed)
        for seed in range(int(options.get("seeds", 1)))
        for arm in chosen
        for name in left_out.split(",")
    ]
    with ThreadPoolExecutor(int(options.get("at_once", 2))) as pool:
        for _ in pool.map(lambda each: benchmark.measure(*each), tries):
            pass
    print(table(benchmark.results()))


if __name__ == "__main__":
    main(sys.argv[1:])
