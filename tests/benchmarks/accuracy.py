"""This project's small classifier against timm's legacy_seresnet18 in a plain loop: same images, same budget.

usage:
  uv run python -m tests.benchmarks.accuracy barcelona=RAW munich=RAW work=DIR out=FILE.json
      [epochs=6] [stain_epochs=20] [seeds=2] [size=96] [threads=1]
All train on Barcelona's training images, choose by Barcelona's validation images, and are scored on Barcelona's
test images and on every Munich image of the types that both sets share (no Munich image is used for training or
choosing). The first two see the same images for `epochs` passes, mirrored and turned by quarters; the third is
this project's network with its default stain augmentation, which needs `stain_epochs`. Two trainings run at a time,
`threads` threads each. Interrupted, the same command goes on.
"""

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipeline.catalog import SPLITS, Dataset
from tests.benchmarks.launch import ROOT, call
from trainer.experiments.machine import describe_machine
from trainer.loop.log import read_records
from trainer.metrics.classification import score

BATCH = 32
RIVAL = "legacy_seresnet18"
# Chosen before any Munich image was scored; Barcelona's validation images had the last word.
MODEL = "senet_small_ge"
OURS = (
    f"model={MODEL}",
    "data.domains=[barcelona]",
    f"train.global_batch={BATCH}",
    "optimizer.learning_rate=0.002",
    "optimizer.average_decay=0.99",
)


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "rival" in arguments:
        print(json.dumps(_run_rival(arguments)))
        return
    work, size = Path(arguments["work"]), int(arguments.get("size", 96))
    epochs, stain_epochs = int(arguments.get("epochs", 6)), int(arguments.get("stain_epochs", 20))
    seeds, threads = int(arguments.get("seeds", 2)), arguments.get("threads", "1")
    shards = work / "dataset"
    call("build_shards", f"shards={shards}", f"barcelona={arguments['barcelona']}", f"munich={arguments['munich']}")
    place = {"work": work, "shards": shards, "size": size, "threads": threads}
    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for seed in range(seeds):
            jobs.append(pool.submit(_rival, seed, epochs=epochs, **place))
            jobs.append(pool.submit(_ours, MODEL, "quarter_turns", seed, epochs=epochs, **place))
            jobs.append(pool.submit(_ours, f"{MODEL}+stain", "stain", seed, epochs=stain_epochs, **place))
        results = [job.result() for job in jobs]
    report = {
        "machine": describe_machine(),
        # Results are committed: where the folders lay does not count.
        "settings": {
            **{name: Path(value).name for name, value in arguments.items()},
            "size": size,
            "epochs": epochs,
            "stain_epochs": stain_epochs,
            "ours": list(OURS),
        },
        "data": {"content_hash": Dataset.open(shards).content_hash},
        "runs": results,
    }
    Path(arguments["out"]).write_text(json.dumps(report, indent=1))
    for result in results:
        barcelona, munich = result["barcelona"], result["munich"]
        print(
            f"{result['model']:22s} seed {result['seed']}: Barcelona {barcelona['accuracy']['value']:.1%}, "
            f"Munich balanced {munich['balanced_accuracy']['value']:.1%}, {result['seconds']:.0f} s"
        )


def _ours(
    name: str, augment: str, seed: int, *, work: Path, shards: Path, size: int, epochs: int, threads: str
) -> dict[str, Any]:
    run = work / f"{name}-{seed}"
    call(
        "train_classifier",
        f"shards={shards}",
        f"run={run}",
        f"seed={seed}",
        *OURS,
        f"data/augment={augment}",
        f"data.image_size={size}",
        f"data.threads={threads}",
        f"train.epochs={epochs}",
        threads=threads,
    )
    log = work / f"{name}-{seed}.evaluation.log"
    call("evaluate", f"run={run}", f"shards={shards}", "split=all", "domain=munich", threads=threads, log=log)
    own = json.loads((run / "evaluation/metrics.json").read_text())
    munich = json.loads((run / "evaluation/dataset-train+validation+test-munich.json").read_text())
    records = [record for record in read_records(run) if record["kind"] == "epoch"]
    return {
        "model": name,
        "seed": seed,
        "validation_accuracy": max(record["validation_accuracy"] for record in records),
        "images_shown": records[-1]["step"] * BATCH,
        "seconds": sum(record["seconds"] for record in records),
        "barcelona": own["scores"],
        "munich": munich["scores"],
    }


def _rival(seed: int, *, work: Path, shards: Path, size: int, epochs: int, threads: str) -> dict[str, Any]:
    kept = work / f"{RIVAL}-{seed}.json"
    if not kept.exists():
        words = [f"shards={shards}", f"rival={RIVAL}", f"seed={seed}", f"size={size}", f"epochs={epochs}"]
        command = [sys.executable, "-m", "tests.benchmarks.accuracy", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        with (work / f"{RIVAL}-{seed}.log").open("w") as log:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        lines = (work / f"{RIVAL}-{seed}.log").read_text().splitlines()
        if done.returncode:
            raise RuntimeError("\n".join(lines[-20:]))
        kept.write_text(lines[-1])
    result: dict[str, Any] = json.loads(kept.read_text())
    return result


def _run_rival(arguments: dict[str, str]) -> dict[str, Any]:
    from tests.benchmarks.plain_loop import load_images, probabilities, train

    dataset, size = Dataset.open(Path(arguments["shards"])), int(arguments["size"])
    train_rows = dataset.samples(splits=["train"], domains=["barcelona"])
    cell_types = sorted(train_rows["cell_type"].unique())
    splits = {
        split: load_images(dataset, dataset.samples([split], ["barcelona"], cell_types), cell_types, size)
        for split in SPLITS
    }
    munich = load_images(dataset, dataset.samples(None, ["munich"], cell_types), cell_types, size)
    seed, epochs = int(arguments["seed"]), int(arguments["epochs"])
    model, facts = train(
        arguments["rival"],
        splits["train"],
        splits["validation"],
        types=len(cell_types),
        epochs=epochs,
        batch=BATCH,
        seed=seed,
    )
    scores = {
        name: dataclasses.asdict(score(probabilities(model, data), data.labels.numpy(), data.groups, cell_types))
        for name, data in (("barcelona", splits["test"]), ("munich", munich))
    }
    return {"model": arguments["rival"], "seed": seed, **facts, **scores}


if __name__ == "__main__":
    main()
