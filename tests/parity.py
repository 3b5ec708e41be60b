"""Each algorithm on several processes, under DDP and ZeRO, against one process on the same global batches: loss traces.

usage:
  uv run python -m tests.parity [algorithms=classifier,stain,conditional,few_shot] [processes=1,2,4]
      [engines=ddp,zero1,zero2] [work=DIR] [out=FILE.json]
Phantom cells, tiny networks, fp32, no dropout, six steps of each algorithm by the real launchers. On the
CPU the processes join over gloo; where there are GPUs, each takes one, over NCCL. One process works through as many
micro-batches as there are processes to compare with, so that batch norms see the same images. Every logged loss and
gradient norm of every step is compared; the exit code is 1 where one differs by more than the tolerance.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from trainer.experiments.machine import describe_machine
from trainer.loop.log import read_records

ROOT = Path(__file__).resolve().parents[1]
# Of a trace's mean size. Sums in another order differ in their last bits (6e-8); a gradient that is wrong by one image
# of twelve differs by a million times as much.
TOLERANCE = 1e-4
# Few: sooner or later a weight's last bit moves a unit of a critic over its kink, where the penalty's gradient leaps,
# and from there on two runs part, under whatever engine.
STEPS = 6
GLOBAL_BATCH = 12
TYPES = ("basophil", "eosinophil", "lymphocyte")
COMMON = (
    "data.image_size=32",
    "data.threads=1",
    "data.deterministic=true",
    "train.precision=fp32",
    f"train.global_batch={GLOBAL_BATCH}",
    f"train.iterations_per_epoch={STEPS}",
    "train.epochs=1",
    "train.log_every=1",
)
# An algorithm -> its launcher, and what makes it tiny.
ALGORITHMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "classifier": ("train_classifier", ("model=senet_tiny_ge", "model.dropout=0", "data.domains=[giemsa]")),
    "stain": (
        "train_stain_gan",
        (
            "model=w_cyclegan_gp",
            *("a=giemsa", "b=violet", "samples_per_type=1", "model.critic_steps=2"),
            *("model.generator.width=4", "model.generator.depth=3", "model.critic.width=4", "model.critic.layers=2"),
        ),
    ),
    "conditional": (
        "train_conditional_gan",
        (
            "model=c_wgan_gp",
            *("data.domains=[giemsa]", "samples_per_type=1", "model.critic_steps=2"),
            *("model.generator.width=4", "model.generator.latent_size=6"),
            *("model.critic.width=4", "model.critic.hidden=8"),
            *("model.classifier.width=4", "model.classifier.hidden=8"),
            *(f"model.{network}.blocks=[1,1,1]" for network in ("generator", "critic", "classifier")),
        ),
    ),
    "few_shot": (
        "train_few_shot_gan",
        (
            "model=few_shot_meta",
            *("data.domains=[giemsa]", "rare_types=[basophil]", "shots=3", "sheet_columns=3", "adaptation.images=42"),
            *("model.generator.width=2", "model.generator.latent_size=6", "model.discriminator.width=2"),
            *("model.encoder.width=2", "model.encoder.feature_size=4", "model.inner.rounds=2"),
            *("model.inner.discriminator_steps=1", "model.inner.generator_steps=2"),
        ),
    ),
}


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    algorithms = arguments.get("algorithms", ",".join(ALGORITHMS)).split(",")
    engines = arguments.get("engines", "ddp,zero1,zero2").split(",")
    processes = [int(number) for number in arguments.get("processes", "1,2,4").split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.get("work", temporary))
        found = compare(work, algorithms, processes, engines)
    if "out" in arguments:
        report = {"machine": describe_machine(), "tolerance": TOLERANCE, "steps": STEPS, "deviations": found}
        Path(arguments["out"]).write_text(json.dumps(report, indent=1))
    sys.exit(int(any(row["deviation"] > TOLERANCE for row in found)))


def compare(work: Path, algorithms: list[str], processes: list[int], engines: list[str]) -> list[dict[str, Any]]:
    """The largest deviation of each algorithm under each engine on each number of processes, and what deviates."""
    data = _phantoms(work / "data")
    found = []
    for algorithm in algorithms:
        for count in processes:
            if 0 < torch.cuda.device_count() < count:
                print(f"{algorithm}: {count} processes left out, there are fewer GPUs", flush=True)
                continue
            alone = _trace(work, data, algorithm, 1, "ddp", GLOBAL_BATCH // count)
            for engine in engines:
                if (count, engine) == (1, "ddp"):
                    continue
                deviation, name = _deviation(_trace(work, data, algorithm, count, engine), alone)
                found.append(
                    {
                        "algorithm": algorithm,
                        "processes": count,
                        "engine": engine,
                        "deviation": deviation,
                        "largest_in": name,
                    }
                )
                verdict = "as one process" if deviation <= TOLERANCE else "DIFFERS"
                print(f"{algorithm:12} {count} x {engine:6} {deviation:.1e} ({name}): {verdict}", flush=True)
    return found


def _phantoms(folder: Path) -> Path:
    """A data set of three cell types in two stains."""
    if not (folder / "catalog.parquet").exists():
        table = render_phantoms(
            folder.with_name("raw"), 30, slides=10, size=32, seed=1, workers=1, cell_types=TYPES, progress=False
        )
        source = SourceDeclaration(kind="table", name="phantom", root=table, domain="phantom")
        build_dataset(folder, [source], settings=ShardSettings(max_samples=16), ratio=(0.7, 0.15, 0.15), progress=False)
    return folder


def _trace(
    work: Path, data: Path, algorithm: str, processes: int, engine: str, micro_batch: int | None = None
) -> dict[str, list[float]]:
    """What each step of a run logged, by name."""
    launcher, arguments = ALGORITHMS[algorithm]
    run = work / f"{algorithm}-{processes}-{engine}-{micro_batch or 'slice'}"
    if not (run / "ended").exists():
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [
            *(sys.executable, *(several if processes > 1 else ())),
            str(ROOT / "launchers" / f"{launcher}.py"),
            *(f"shards={data}", f"run={run}", f"train.engine={engine}", *COMMON, *arguments),
            *([f"train.micro_batch={micro_batch}"] if micro_batch else ()),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-4000:]}")
        (run / "ended").touch()
    steps = [record for record in read_records(run) if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    names = [name for name in steps[0] if not name.startswith(_UNCOMPARED)]
    return {name: [float(record[name]) for record in steps] for name in names}


# Of a step's record: where it stands and how fast it was.
_UNCOMPARED = ("kind", "step", "epoch", "images", "learning_rate", "images_per_second", "data_wait")


def _deviation(trace: dict[str, list[float]], reference: dict[str, list[float]]) -> tuple[float, str]:
    assert trace.keys() == reference.keys()
    found = []
    for name, values in trace.items():
        expected = torch.tensor(reference[name], dtype=torch.float64)
        difference = (torch.tensor(values, dtype=torch.float64) - expected).abs().max()
        found.append((float(difference / expected.abs().mean().clamp_min(1e-12)), name))
    return max(found)


if __name__ == "__main__":
    main()
