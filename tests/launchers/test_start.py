"""If these fail, somebody waits for imports: before being told of a mistyped argument, or before a first step."""

import subprocess
import sys
import time

import pytest

from tests.launching import ROOT

# What takes seconds to import, and is of no use before the work begins.
HEAVY = {
    "torch",
    "torchvision",
    "torchmetrics",
    "timm",
    "accelerate",
    "deepspeed",
    "nvidia",
    "ray",
    "sklearn",
    "matplotlib",
    "webdataset",
}
LAUNCHERS = sorted(path.stem for path in (ROOT / "launchers").glob("*.py") if path.stem not in ("__init__", "console"))
# What a training needs after its first epoch, or not at all. torch._dynamo: torch's optimizers import it, no sooner.
NOT_FOR_A_STEP = {
    "timm",
    "torchvision",
    "torchmetrics",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "skimage",
    "deepspeed",
}
# Seconds; on a quiet machine one. Importing torch alone takes several times as long where this is reached.
BOUND = 30.0
RUN = ("run=nowhere", "no config.yaml there")
DATASET = ("shards=nowhere", "no data set here")


def imported_packages(importtime: str) -> set[str]:
    """Top-level packages in what `python -X importtime` writes to stderr."""
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in importtime.splitlines() if "|" in line}
    assert "trainer" in packages  # the format was understood
    return packages


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("adapt", (RUN[0], "images=x", "out=y"), RUN[1]),
        ("ablate", ("sweep=nowhere", "out=x"), "no sweep file to read"),
        ("audit", DATASET[:1], DATASET[1]),
        ("audit", RUN[:1], RUN[1]),
        ("balance", (DATASET[0], "banks=[a]", "out=x", "per_type=3"), DATASET[1]),
        ("build_shards", ("shards=x", "folder=nowhere", "name=a", "domain=b"), "nowhere: no such folder"),
        ("count", (RUN[0], "fields=x", "out=y"), RUN[1]),
        ("evaluate", RUN[:1], RUN[1]),
        ("evaluate", ("bank=.", "shards=x", "classifier=y"), "x: no data set here"),
        ("export", (RUN[0], "format=onnx"), RUN[1]),
        ("normalize_stains", (DATASET[0], "out=x"), DATASET[1]),
        ("plan", ("config=train_classifier", DATASET[0]), DATASET[1]),
        ("predict", (RUN[0], "images=x", "out=y"), RUN[1]),
        ("review", (DATASET[0], "out=x.html"), DATASET[1]),
        ("reproduce", ("preset=nowhere", "run=x"), "no preset file to read"),
        ("synthesize", (RUN[0], "bank=x", "count=1"), RUN[1]),
        ("train_classifier", (DATASET[0], "run=x"), DATASET[1]),
        ("train_classifier", ("phantom.per_tipe=3",), "the nearest is phantom.per_type"),
        ("train_conditional_gan", (DATASET[0], "run=x"), DATASET[1]),
        ("train_detector", (DATASET[0], "run=x"), DATASET[1]),
        ("train_few_shot_gan", (DATASET[0], "run=x"), DATASET[1]),
        ("train_stain_gan", (DATASET[0], "run=x"), DATASET[1]),
    ],
)
def test_a_missing_folder_is_told_before_torch_is_imported(name: str, arguments: tuple[str, ...], says: str) -> None:
    """--help and an unknown key end on the way there."""
    command = [sys.executable, "-X", "importtime", str(ROOT / f"launchers/{name}.py"), *arguments]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    assert time.monotonic() - begun < BOUND
    assert not imported_packages(done.stderr) & HEAVY
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_imports_nothing_heavy(name: str) -> None:
    """Whatever it lists; a {list} that nothing fills in would be an error."""
    command = [sys.executable, "-X", "importtime", str(ROOT / f"launchers/{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"launchers/{name}.py" in done.stdout
    assert not imported_packages(done.stderr) & HEAVY


def test_a_trainings_first_step_waits_for_no_report() -> None:
    """What only scores, figures and other models need is imported when they begin."""
    trainings = ", ".join(
        f"trainer.tasks.{task}.task" for task in ("classification", "stain", "conditional", "few_shot", "detection")
    )
    script = f"import sys, trainer.runs.training, {trainings}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    imported = {name.partition(".")[0] for name in modules}
    assert {"torch", "accelerate", "nvidia"} <= imported
    assert not imported & NOT_FOR_A_STEP
    assert "torch._dynamo" not in modules
