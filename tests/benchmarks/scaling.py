"""Weak scaling: training on the GPUs, or the cores, that are here, and by simulation on 1 to 64 GPUs.

usage: uv run python -m tests.benchmarks.scaling out=FILE.json [key=value ...]
  work=DIR                where phantoms and runs lie meanwhile; a temporary folder, if nothing is said
  repeats=5               rounds through all that is measured
  laps=1.0                factor on the steps of each training that is timed
  largest_exchange=64     MiB; the exchange is measured in sizes up to this one

Measured on GPUs, a process to each: NCCL's exchange and training on 1, 2, 4 ... of them. Without: gloo's exchange on
loopback with 2 and 4 processes, and training on 1 and 2 processes of a thread each. Both hold the formulas of
tests/benchmarks/step_time.py against what they predict. The simulation takes the seconds of a step on one GPU and the
link between GPUs from these measurements where there are GPUs; else timm's published speed of an RTX 3090, and links
that are assumed, as those between machines always are. Taken from tests/benchmarks/results/loader.json: images per
second and core. Counted: gradients of the real networks.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_pipeline.errors import UserError
from launchers.console import launch
from tests.benchmarks.launch import ROOT
from tests.benchmarks.measured_steps import count_parameters, measure_exchange, measure_training
from tests.benchmarks.step_time import BACKWARD_SHARE, BUCKET_BYTES, Link, Step, waited_for
from trainer.experiments.machine import describe_machine
from trainer.runs.configuration import typed

GPUS = (1, 2, 4, 8, 16, 32, 64)
GPUS_PER_MACHINE = 8
IMAGES_PER_GPU = (16, 64)
LOADING_CORES = 4
# timm's table of training speed, RTX 3090, AMP, channels first, 224 px: published, not measured here.
PUBLISHED_SPEED = {"senet154_ge": 172.5, "resnet50": 1218.0}
# Assumed: what a ring reaches of a link's nominal rate, within a machine of eight GPUs and between machines.
FABRICS = {
    "NVLink, InfiniBand 200 Gb/s": (Link(200e9, 5e-6), Link(22e9, 10e-6)),
    "PCIe 4.0, InfiniBand 100 Gb/s": (Link(10e9, 10e-6), Link(11e9, 10e-6)),
    "PCIe 4.0, Ethernet 25 Gb/s": (Link(10e9, 10e-6), Link(2.5e9, 30e-6)),
    "PCIe 4.0, Ethernet 10 Gb/s": (Link(10e9, 10e-6), Link(1e9, 30e-6)),
}


@dataclass(frozen=True)
class Options:
    """The command line; see the usage above."""

    out: str = ""
    work: str | None = None
    repeats: int = 5
    laps: float = 1.0
    largest_exchange: int = 64


def main(arguments: Sequence[str]) -> None:
    options = typed(Options, dict(argument.split("=", 1) for argument in arguments), "arguments")
    if not options.out:
        raise UserError("give out=FILE.json")
    with tempfile.TemporaryDirectory() as temporary:
        result = run(options, Path(options.work or temporary))
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))


def run(options: Options, work: Path) -> dict[str, Any]:
    """Everything that is measured, counted, assumed and simulated."""
    loader = json.loads((ROOT / "tests/benchmarks/results/loader.json").read_text())
    exchange = measure_exchange(options.repeats, options.largest_exchange * 2**20)
    links = {int(processes): Link(**part["link"]) for processes, part in exchange.items()}
    training = measure_training(options.repeats, options.laps, work, links)
    networks = {name: count_parameters(name) for name in PUBLISHED_SPEED}
    per_core = loading_of(loader)["original size"]["images_per_second_and_core"]
    return {
        "machine": describe_machine(),
        "exchange": exchange,
        "training": training,
        "loading": loading_of(loader),
        "networks": networks,
        "assumed": {
            "links, bytes per second and seconds, within a machine and between": {
                name: [asdict(link) for link in links] for name, links in FABRICS.items()
            },
            "gpus_per_machine": GPUS_PER_MACHINE,
            "backward_share": BACKWARD_SHARE,
            "bucket_bytes": BUCKET_BYTES,
            "cores per GPU that load": LOADING_CORES,
        },
        "published images per second of one GPU": PUBLISHED_SPEED,
        "simulated": simulate(networks, per_core, seconds_of_one_gpu(training), links.get(max(links, default=0))),
    }


def seconds_of_one_gpu(training: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Measured seconds of a step without loading, by network and images; none of a CPU."""
    return {
        (case["model"], case["images"]): step["measured"]["low"]
        for case in training
        for step in case["steps"]
        if case["model"] in PUBLISHED_SPEED and (step["processes"], step["batches"]) == (1, "synthetic")
    }


def simulate(
    parameters: dict[str, int],
    images_per_core: float,
    measured: Mapping[tuple[str, int], float] = MappingProxyType({}),
    within: Link | None = None,
) -> list[dict[str, Any]]:
    """One row for each network, share of a step, fabric, width of gradients and number of GPUs.

    A GPU's share of a step stays as it is, the global batch grows with the GPUs. measured: see seconds_of_one_gpu;
    where there are any, `within` is the measured link between the GPUs of a machine.
    """
    rows = []
    for network, speed in PUBLISHED_SPEED.items():
        for images in IMAGES_PER_GPU:
            for fabric in FABRICS:
                for gradient, width in (("fp32", 4), ("fp16", 2)):
                    for gpus in GPUS:
                        row: dict[str, Any] = {"network": network, "images_per_gpu": images, "fabric": fabric}
                        row |= {"gradient": gradient, "gpus": gpus}
                        link = link_of(fabric, gpus, within if measured else None)
                        compute, size = measured.get((network, images), images / speed), parameters[network] * width
                        for name, overlap in (("without overlap", False), ("with overlap", True)):
                            waited = waited_for(gpus, size, link, compute, overlap=overlap)
                            step = Step(compute, waited, images / (images_per_core * LOADING_CORES))
                            row[name] = {
                                "milliseconds": round(1000 * step.seconds, 2),
                                "images_per_second": round(gpus * images / step.seconds),
                                "efficiency": round(compute / step.seconds, 3),
                                "bound": step.bound,
                            }
                        rows.append(row)
    return rows


def link_of(fabric: str, gpus: int, measured: Link | None = None) -> Link:
    """The slowest link of a ring over so many GPUs: it enters and leaves each machine once. measured: within one."""
    assumed, between = FABRICS[fabric]
    within = measured or assumed
    if gpus <= GPUS_PER_MACHINE:
        return within
    return Link(min(within.bandwidth, between.bandwidth), max(within.latency, between.latency))


def loading_of(loader: dict[str, Any]) -> dict[str, Any]:
    """What a core loads at 224 px with every augmentation, and the cores that one GPU therefore needs."""
    found = {}
    for stored, part in loader["loading"].items():
        speed = part["results"]["stream, stain"]["images_per_second"]["median"] / loader["machine"]["cores"]
        found[stored] = {
            "images_per_second_and_core": round(speed, 1),
            "stored_bytes_per_image": part["stored_bytes_per_image"],
            "cores_for_one_gpu": {name: round(gpu / speed, 2) for name, gpu in PUBLISHED_SPEED.items()},
        }
    return found


def table(result: dict[str, Any]) -> list[str]:
    """Efficiency by GPUs for the README, and how far the predictions are from what was measured here."""
    lines = []
    for processes, part in result["exchange"].items():
        for link in part["rows"][0]["predicted / measured"]:
            ratios = [row["predicted / measured"][link] for row in part["rows"]]
            lines.append(
                f"exchange, {processes} processes, {link}: predicted / measured {min(ratios)} to {max(ratios)}"
            )
    for case in result["training"]:
        lines += [
            f"{case['model']}, {case['image_size']} px, {case['images']} images for each of {step['processes']} "
            f"processes, {step['batches']}: efficiency {step['efficiency']['median']:.2f}, "
            f"measured {step['measured']['low']} s, predicted {step['predicted']['without overlap']} s, "
            f"{step['predicted']['with overlap']} s with overlap"
            for step in case["steps"]
        ]
    head = " | ".join(map(str, GPUS))
    lines.append(f"| efficiency, % | images per GPU | overlap | {head} |")
    lines.append("|---" * (3 + len(GPUS)) + "|")
    rows = [row for row in result["simulated"] if row["gradient"] == "fp32"]
    for network in PUBLISHED_SPEED:
        for fabric in FABRICS:
            for images in IMAGES_PER_GPU:
                here = [
                    r for r in rows if (r["network"], r["fabric"], r["images_per_gpu"]) == (network, fabric, images)
                ]
                for overlap in ("without overlap", "with overlap"):
                    cells = " | ".join(f"{100 * row[overlap]['efficiency']:.0f}" for row in here)
                    lines.append(f"| {network}, {fabric} | {images} | {overlap} | {cells} |")
    return lines


if __name__ == "__main__":
    launch(main, __doc__)
