"""The thesis's ablation and its comparison of classifiers on the two public data sets, at sizes for two cores.

usage:
  uv run python -m tests.benchmarks.sweeps barcelona=RAW munich=RAW work=DIR out=FILE.json [parts=ablation,comparison]
The ablation is of both data sets at 32 px (configs/sweeps/ablation_small.yaml), the comparison of Barcelona at 64 px
(configs/sweeps/classifiers_small.yaml). Reports lie in work=. Interrupted, the same command goes on; a part that is
not named keeps what out= holds of it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.launch import ROOT, call
from trainer.experiments.machine import describe_machine

# A part -> its sweep file, the raw folders that it takes, and how they are sharded.
PARTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "ablation": (
        "ablation_small",
        ("barcelona", "munich"),
        ("promyelocytes=promyelocyte", "stored_size=64", "ratio=[0.55,0.05,0.4]"),
    ),
    "comparison": ("classifiers_small", ("barcelona",), ("stored_size=128",)),
}
# Of results.json, what depends on where the sweep lay.
_PLACES = ("command", "run")


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    work, out = Path(arguments["work"]), Path(arguments["out"])
    report = json.loads(out.read_text()) if out.exists() else {}
    for part in arguments.get("parts", ",".join(PARTS)).split(","):
        sweep, sources, options = PARTS[part]
        shards, folder = work / f"{part}-data", work / part
        call("build_shards", f"shards={shards}", *(f"{name}={arguments[name]}" for name in sources), *options)
        call("ablate", f"sweep={ROOT / 'configs/sweeps' / sweep}.yaml", f"shards={shards}", f"out={folder}")
        report[part] = {"machine": describe_machine(), "sweep": sweep, "sharded": options} | results(folder)
        out.write_text(json.dumps(report, indent=1))
        for arm in report[part]["arms"]:
            accuracy, sensitivity = (arm["scores"]["overall"][name]["value"] for name in ("accuracy", "sensitivity"))
            print(f"{part}: {arm['title']:36s} accuracy {accuracy:.1%}, mean sensitivity {sensitivity:.1%}")


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
