"""Whether generated images help a classifier, by the way in which they are used, against class-balanced sampling alone.

usage:
  uv run python -m tests.benchmarks.synthetic barcelona=RAW munich=RAW work=DIR out=FILE.json
      [banks=A,B] [weights=FILE] [arms=none,class_balanced,...] [seeds=3] [passes=15] [size=64] [jobs=2]
      [images=64000] [rare_images=6000] [episodes=100]
Of three types of Barcelona 90, 40 and 15 training images are left (WORK/thinned). Every arm is a classifier that is
trained for the same number of steps and scored on real test images.
banks: image banks of these types, of generators that learned from WORK/thinned alone; without them C-WGAN-GP and the
few-shot generator are trained on `images`, `rare_images` and `episodes` (see generation.py). weights: a file of
ImageNet weights of tf_efficientnet_lite0, to begin with and for the features of per_type=auto; without it
senet_small_ge learns from scratch. Seeds come one after another, each with all arms; the file is written anew after
each training, with the difference of each arm from class-balanced sampling on the same images. Interrupted, the same
command goes on.
"""

import csv
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from tests.benchmarks.generation_runs import CLASSIFIER, TYPES, Benchmark
from tests.benchmarks.launch import call
from trainer.experiments.machine import describe_machine
from trainer.experiments.results import Trial, arm_scores, difference, read_answers
from trainer.loop.log import logged_seconds
from trainer.metrics.bootstrap import Estimate

# Training images left of each thinned type: C-WGAN-GP makes more of the first, the few-shot generator of the others.
THINNED = {"lymphocyte": 90, "basophil": 40, "eosinophil": 15}
FILLED_TO = 270  # images of each type
CONTROL = "class_balanced"
BALANCED = "data.sampling=class_balanced"
# Name -> data set, and arguments of the classifier's training.
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("thinned", ()),
    CONTROL: ("thinned", (BALANCED,)),
    "added": ("filled", ()),
    "added_balanced": ("filled", (BALANCED,)),
    "first_then_real": ("filled", (BALANCED, "train.synthetic.until=0.5")),
    "own_statistics": ("filled", (BALANCED, "model.norm=auxiliary")),
    "replacement": ("filled", (BALANCED, "train.synthetic.replace=0.3")),
    "weight": ("filled", (BALANCED, "train.synthetic.weight=0.3")),
    "selected": ("selected", (BALANCED,)),
    "auto": ("auto", (BALANCED,)),
}
PRETRAINED = (
    "model=efficientnet_lite_pretrained",
    "optimizer=pretrained",
    "data/augment=quarter_turns",
    "train.global_batch=32",
)
FROZEN = ("model=frozen", "model.timm_name=tf_efficientnet_lite0", "model.least_size=96")


@dataclass(frozen=True)
class Comparison:
    """The arms' data sets and trainings."""

    benchmark: Benchmark
    weights: str | None
    banks: tuple[str, ...]
    thinned: Dataset

    def train(self, dataset: str, name: str, *options: str) -> Path:
        """A classifier of one arm."""
        run = self.benchmark.work / name
        start = CLASSIFIER if self.weights is None else (*PRETRAINED, f"model.weights={self.weights}")
        data = self.benchmark.data(TYPES, "barcelona")
        length = (f"train.epochs={self.benchmark.passes}", "train.iterations_per_epoch=66")
        shards = f"shards={self.benchmark.work / dataset}"
        call("train_classifier", shards, f"run={run}", *start, *data, *length, *options)
        return run

    def prepare(self, arms: Sequence[str], pool: ThreadPoolExecutor) -> None:
        """Banks and the data sets of these arms."""
        needed = {ARMS[arm][0] for arm in arms} - {"thinned"}
        if not needed:
            return
        work = self.benchmark.work
        banks = self._own_banks() if self.banks else self._make_banks(pool)
        listed = f"banks=[{','.join(map(str, banks))}]"
        balance = (f"shards={self.thinned.root}", listed, "domains=[barcelona]")
        if "filled" in needed:
            call("balance", *balance, f"out={work / 'filled'}", f"per_type={FILLED_TO}")
        if "selected" in needed:
            judge = self.train("thinned", "judge", BALANCED)  # of the few real training images: no other may choose
            for bank in banks:
                log = bank.with_suffix(".evaluation.log")
                call("evaluate", f"bank={bank}", f"shards={self.thinned.root}", f"classifier={judge}", log=log)
            chosen = ("best=[type_probability,type_likeness]", "least={novelty: 1}", "at_most=1")
            call("balance", *balance, f"out={work / 'selected'}", f"per_type={FILLED_TO}", *chosen)
        if "auto" in needed:
            call("balance", *balance, f"out={work / 'auto'}", "per_type=auto", f"classifier={self._features()}")

    def _features(self) -> Path:
        """A run whose features per_type=auto compares: of ImageNet weights, or of the control."""
        if self.weights is None:
            return self.train("thinned", "judge", BALANCED)
        run, data = self.benchmark.work / "frozen", self.benchmark.data(TYPES, "barcelona")
        weights = (f"model.weights={self.weights}", f"cache={self.benchmark.work / 'cache'}")
        call("train_classifier", f"shards={self.thinned.root}", f"run={run}", *FROZEN, *weights, *data, BALANCED)
        return run

    def _own_banks(self) -> list[Path]:
        """Copies: an arm writes scores into them."""
        copies = [self.benchmark.work / "banks" / Path(bank).name for bank in self.banks]
        for bank, copy in zip(self.banks, copies, strict=True):
            if not copy.exists():
                shutil.copytree(bank, copy)
        return copies

    def _make_banks(self, pool: ThreadPoolExecutor) -> list[Path]:
        benchmark, data = self.benchmark, self.benchmark.data(TYPES, "barcelona")
        moderate, *rare = THINNED
        runs = [
            pool.submit(
                benchmark.train_conditional, "c_wgan_gp", self.thinned, "help-c_wgan_gp", data, benchmark.images
            ),
            pool.submit(benchmark.train_few_shot, "few_shot_meta", self.thinned, "help-few_shot", data, rare),
        ]
        banks = []
        for run, types in zip(runs, ([moderate], rare), strict=True):
            bank = benchmark.work / f"bank-{run.result().name}"
            call("synthesize", f"run={run.result()}", f"bank={bank}", "count=300", f"cell_types=[{','.join(types)}]")
            banks.append(bank)
        return banks


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    numbers = {"images": 64_000, "rare_images": 6_000, "episodes": 100, "seeds": 3, "passes": 15, "size": 64}
    settings = {name: int(arguments.get(name, default)) for name, default in numbers.items()}
    work, out = Path(arguments["work"]), Path(arguments["out"])
    benchmark = Benchmark(work=work, barcelona=arguments["barcelona"], munich=arguments["munich"], **settings)
    arms = arguments["arms"].split(",") if "arms" in arguments else list(ARMS)
    whole = benchmark.build("dataset")
    thinned = benchmark.build("thinned", f"exclude={_write_exclusions(whole, work)}")
    banks = tuple(filter(None, arguments.get("banks", "").split(",")))
    comparison = Comparison(benchmark, arguments.get("weights"), banks, thinned)
    trials: defaultdict[str, list[Trial]] = defaultdict(list)
    with ThreadPoolExecutor(int(arguments.get("jobs", "2"))) as pool:
        comparison.prepare(arms, pool)
        facts = {
            "machine": describe_machine(),
            "settings": settings
            | {"left": THINNED, "filled_to": FILLED_TO, "pretrained": comparison.weights is not None},
            "data": {name: Dataset.open(work / name).content_hash for name in sorted({ARMS[arm][0] for arm in arms})},
            "asked": _asked(work / "auto") if "auto" in arms else None,
        }
        jobs = {}
        for seed in range(benchmark.seeds):
            for arm in arms:
                job = pool.submit(comparison.train, ARMS[arm][0], f"{arm}-{seed}", *ARMS[arm][1], f"seed={seed}")
                jobs[job] = arm, seed
        for job in as_completed(jobs):
            arm, seed = jobs[job]
            run = job.result()
            trials[arm].append(Trial(run.name, arm, arm, None, seed, {}, "", run, None, "finished", None, None))
            out.write_text(json.dumps(facts | {"arms": compare(trials)}, indent=1) + "\n")
            print(_row(trials[arm][-1]), flush=True)


def compare(trials: Mapping[str, Sequence[Trial]]) -> dict[str, Any]:
    """Scores of each arm over its seeds, and their differences from the control on the same images and seeds."""
    answers = {arm: read_answers(some) for arm, some in trials.items()}
    found = {}
    for arm, own in answers.items():
        kinds = {"scores": arm_scores(own)}
        if CONTROL in answers and arm != CONTROL:
            kinds["difference"] = difference(own, answers[CONTROL])
        found[arm] = {
            kind: {
                "balanced_accuracy": asdict(each.overall["balanced_accuracy"]),
                "sensitivity": {name: asdict(each.per_type[name]["sensitivity"]) for name in THINNED},
                "seeds": list(own.seeds) if kind == "scores" else each.paired_seeds,
            }
            for kind, each in kinds.items()
        } | {"training_seconds": [logged_seconds(trial.run) for trial in trials[arm]]}
    return found


def _row(trial: Trial) -> str:
    """One training's scores, for the screen."""
    scores = arm_scores(read_answers([trial]))

    def words(estimate: Estimate) -> str:
        return estimate.format(brackets=True)

    of_types = ", ".join(f"{name} {words(scores.per_type[name]['sensitivity'])}" for name in THINNED)
    return f"{trial.arm}, seed {trial.seed}: balanced accuracy {words(scores.overall['balanced_accuracy'])}; {of_types}"


def _asked(dataset: Path) -> Any:
    """What validation asked for: the record in the data set."""
    return Dataset.open(dataset).metadata["made_by"]["asked"]


def _write_exclusions(dataset: Dataset, work: Path) -> Path:
    """A list of the training images that are to go; the first by id stay, ids being hashes of the images."""
    rows = dataset.samples(splits=["train"], domains=["barcelona"], columns=["id", "cell_type"]).sort_values("id")
    path = work / "exclusions.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "reason"])
        for cell_type, left in THINNED.items():
            writer.writerows([name, "thinned"] for name in rows["id"][rows["cell_type"] == cell_type][left:])
    return path


if __name__ == "__main__":
    main()
