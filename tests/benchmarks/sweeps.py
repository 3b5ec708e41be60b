"""The thesis's ablation and its comparison of classifiers on the two public data sets, at sizes for two cores.

usage:
  uv run python -m tests.benchmarks.sweeps barcelona=RAW munich=RAW weights=FILE work=DIR out=FILE.json
      [parts=ablation,ablation_pretrained,comparison]
weights: timm's ImageNet weights of tf_efficientnet_lite0. The ablation is of both data sets at 64 px
(configs/sweeps/ablation_small.yaml), once with classifiers from scratch and once from ImageNet weights, on the same
images; the comparison is of Barcelona at 64 px (configs/sweeps/classifiers_small.yaml). Reports lie in work=.
Interrupted, the same command goes on; a part that is not named keeps what out= holds of it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.launch import ROOT, call
from trainer.experiments.machine import describe_machine
from trainer.experiments.sweep_config import read_sweep

TWO_SETS = ("promyelocytes=promyelocyte", "stored_size=80", "ratio=[0.55,0.05,0.4]")
PRETRAINED = (
    "model=efficientnet_lite_pretrained",
    "optimizer=pretrained",
    "data/augment=quarter_turns",
    "data.image_size=64",
    "data.crop={barcelona: 0.8}",
    "train.epochs=4",
    "train.iterations_per_epoch=100",
    "train.global_batch=32",
)


@dataclass(frozen=True)
class Part:
    """A sweep file, the raw folders that it takes, and how they are sharded (`data` names the folder)."""

    sweep: str
    sources: tuple[str, ...]
    data: str
    sharded: tuple[str, ...]
    pretrained: bool = False


PARTS = {
    "ablation": Part("ablation_small", ("barcelona", "munich"), "two-sets", TWO_SETS),
    "ablation_pretrained": Part("ablation_small", ("barcelona", "munich"), "two-sets", TWO_SETS, pretrained=True),
    "comparison": Part("classifiers_small", ("barcelona",), "barcelona", ("stored_size=128",)),
}
# Of results.json, what depends on where the sweep lay.
_PLACES = ("command", "run")


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    work, out = Path(arguments["work"]), Path(arguments["out"])
    report = json.loads(out.read_text()) if out.exists() else {}
    for name in arguments.get("parts", ",".join(PARTS)).split(","):
        part, folder, shards = PARTS[name], work / name, work / PARTS[name].data
        call("build_shards", f"shards={shards}", *(f"{each}={arguments[each]}" for each in part.sources), *part.sharded)
        file = ROOT / "configs/sweeps" / f"{part.sweep}.yaml"
        changes = _changes(part, file, shards, arguments.get("weights"))
        call("ablate", f"sweep={file}", f"shards={shards}", f"out={folder}", f"stages={work / 'stages'}", *changes)
        report[name] = {"machine": describe_machine(), "sweep": part.sweep, "sharded": part.sharded} | results(folder)
        out.write_text(json.dumps(report, indent=1))
        for arm in report[name]["arms"]:
            accuracy, sensitivity = (arm["scores"]["overall"][each]["value"] for each in ("accuracy", "sensitivity"))
            print(f"{name}: {arm['title']:36s} accuracy {accuracy:.1%}, mean sensitivity {sensitivity:.1%}")


def _changes(part: Part, file: Path, shards: Path, weights: str | None) -> list[str]:
    """What is laid over the sweep's file: where the weights are, and the pretrained classifier in place of its own."""
    if part.sweep != "ablation_small":
        return []
    weights = weights or "pretrained"  # timm's, by the network
    conditional = [*read_sweep(file, [f"shards={shards}"]).ablation.conditional, f"model.options.weights={weights}"]
    changes = [f"ablation.conditional={json.dumps(conditional)}"]
    if part.pretrained:  # it has no gather-excite to leave out
        changes += [f"fixed={json.dumps([*PRETRAINED, f'model.weights={weights}'])}"]
        changes += ["arms=[full,without_normalization,few_shot_only,conditional_only,original,class_balanced]"]
    return changes


def results(sweep: Path) -> dict[str, Any]:
    """A sweep's results.json for committing: without where its folders lay."""
    content: dict[str, Any] = json.loads((sweep / "results.json").read_text())
    for arm in content["arms"]:
        arm["data"]["path"] = Path(arm["data"]["path"]).name
    content["trials"] = [
        {name: value for name, value in trial.items() if name not in _PLACES} for trial in content["trials"]
    ]
    return content


if __name__ == "__main__":
    main()
