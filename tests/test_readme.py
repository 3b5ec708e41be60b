"""If these fail, a command of a README does not do what it says there, does not run at all, or a link leads nowhere."""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.catalog import Dataset
from data_pipeline.phantoms.folders import render_phantoms
from launchers import audit, build_shards, count, export, plan, predict, reproduce, review, train_classifier
from launchers.console import CONFIGS, read_config
from tests.conftest import TINY_TYPES
from tests.launching import ROOT
from trainer.experiments.launches import LAUNCHER_CONFIGS
from trainer.experiments.reproduction_config import read_preset
from trainer.experiments.sweep_config import read_sweep
from trainer.runs import shipped
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.tasks.classification.adaptation.config import AdaptConfig
from trainer.tasks.detection.config import DetectorRunConfig

USERS = "README.md"
# Every README by its path; none of what is installed or made here.
READMES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for pattern in ("README.md", "*/README.md", "*/*/README.md")
    for path in sorted(ROOT.glob(pattern))
    if not re.match(r"\.|(build|data|runs)/", path.relative_to(ROOT).as_posix())
}
# Folders whose README says what lives there, how to add to it and where to begin reading.
FOLDERS = ("configs", "data_pipeline", "docker", "launchers", "models", "tests", "tests/benchmarks", "trainer")
# What the worked examples write is not there.
WALKS = "Worked examples"
KINDS: dict[str, type] = {
    **LAUNCHER_CONFIGS,
    "balance": BalanceConfig,
    "adapt": AdaptConfig,
    "audit": audit.AuditConfig,
    "build_shards": build_shards.BuildConfig,
    "count": count.CountConfig,
    "evaluate": EvaluateConfig,
    "export": export.ExportConfig,
    "predict": predict.PredictConfig,
    "review": review.ReviewConfig,
    "train_detector": DetectorRunConfig,
}
# What keeps a training short; a command's own word for the same gives way.
TINY_TRAINING = {
    "data.image_size": "32",
    "train.epochs": "1",
    "train.iterations_per_epoch": "2",
    "train.global_batch": "16",
    "train.micro_batch": "null",
    "train.precision": "fp32",
}
TINY = {
    "train_classifier": TINY_TRAINING | {"model": "senet_tiny_ge"},
    "train_stain_gan": TINY_TRAINING | {"model.generator.depth": "3", "model.generator.width": "8"},
    "train_conditional_gan": TINY_TRAINING
    | {f"model.{network}.blocks": "[1,1,1]" for network in ("generator", "critic", "classifier")}
    | {f"model.{network}.width": "8" for network in ("generator", "critic", "classifier")},
    "train_few_shot_gan": TINY_TRAINING
    | {
        "rare_types": "[monoblast,smudge cell]",
        "train.global_batch": "4",
        "shots": "4",
        "adaptation.images": "40",
        "model.inner.rounds": "1",
    }
    | {f"model.{network}.width": "8" for network in ("generator", "encoder", "discriminator")},
    "adapt": {"steps": "2"},
    "synthesize": {"count": "8"},
    "balance": {"per_type": "80"},
    "plan": {"model": "senet_tiny_ge", "data.image_size": "32"},
}
LABORATORY = "Your slides, from zero labels to a hundred"
# Sections whose commands are run, in this order, in one folder.
RUN = (
    ("data_pipeline/README.md", "Your images"),
    ("launchers/README.md", "Training"),
    ("launchers/README.md", "Scores and predictions"),
    ("launchers/README.md", "Another laboratory's stain"),
    ("launchers/README.md", "Types with few images"),
)
# Other machines, several GPUs, files that only the reader has, or a second time what another line does.
LEFT_OUT = (
    *("--num_processes", "s3://", "rdzv", "sbatch", "docker", "export ", "split=all", "mkdir"),
    *("table=raw", "raw/BCCD", "raw/our_fields", "per_type=auto", "DinoBloom"),
)


def sections(readme: str) -> dict[str, str]:
    """The text of each section of a README (`##`) by its title; what stands before the first one is under ""."""
    parts = re.split(r"^## (.*)$", READMES[readme], flags=re.M)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(readme: str, section: str) -> list[str]:
    """The lines of a section's shell blocks, continued ones joined, without comments."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", sections(readme)[section], flags=re.S):
        lines = block.replace("\\\n", " ").splitlines()
        found += [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return found


def launched(command: str) -> tuple[str, list[str]] | None:
    """The launcher and its arguments; None where the command starts none."""
    words = shlex.split(command)
    for number, word in enumerate(words):
        if word.startswith("launchers/"):
            return Path(word).stem, words[number + 1 :]
    return None


def all_launches() -> Iterator[tuple[str, list[str]]]:
    """Each launch of every README once."""
    seen = set()
    for readme in READMES:
        for section in sections(readme):
            for command in commands(readme, section) if section != WALKS else ():
                found = launched(command)
                if found is not None and "--help" not in found[1] and str(found) not in seen:
                    seen.add(str(found))
                    yield found


LAUNCHES = list(all_launches())


@pytest.mark.parametrize(("launcher", "arguments"), LAUNCHES, ids=[" ".join([name, *rest]) for name, rest in LAUNCHES])
def test_the_launcher_knows_every_argument(launcher: str, arguments: list[str]) -> None:
    own: dict[str, Any] = dict(argument.split("=", 1) for argument in arguments)
    if launcher == "ablate":
        keys = ("sweep", "out")
        read_sweep(ROOT / own["sweep"], [argument for argument in arguments if argument.split("=")[0] not in keys])
    elif launcher == "reproduce":
        rest = [argument for argument in arguments if argument.split("=")[0] not in reproduce.OWN]
        read_config(reproduce.ReproduceConfig, "reproduce", [each for each in arguments if each not in rest])
        read_preset(CONFIGS / "reproduce" / f"{own['preset']}.yaml", rest)
    elif launcher == "plan":
        mine = [argument for argument in arguments if argument.split("=")[0] in ("config", "gpu_memory")]
        asked = read_config(plan.PlanConfig, "plan", mine)
        read_config(
            plan.LAUNCHERS[str(asked.config)], str(asked.config), [each for each in arguments if each not in mine]
        )
    elif not arguments:
        read_config(train_classifier.QuickstartConfig, "quickstart", arguments)
    else:
        read_config(KINDS[launcher], launcher, arguments)


def test_the_readme_for_users_is_short() -> None:
    assert len(READMES[USERS].splitlines()) <= 250


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_lives_there_before_anything_else(folder: str) -> None:
    start = READMES[f"{folder}/README.md"].split("\n## ", 1)[0]
    places = [
        start.find(f"**{words}.**") for words in ("What lives here", "How to add to it", "Where to begin reading")
    ]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("readme", READMES)
def test_every_file_and_module_that_is_named_is_there(readme: str) -> None:
    """Files by their path from the project's root or from the README's folder, launchers also by their name alone."""
    text = "".join(part for section, part in sections(readme).items() if section != WALKS)
    named = re.findall(r"\b((?:configs|docker|tests|trainer|launchers)/[\w/]+\.(?:yaml|sh|py|json|png|txt))", text)
    named += re.findall(r"`([\w/]+\.(?:sh|py))`", text)
    places = (ROOT, (ROOT / readme).parent, ROOT / "launchers")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
    modules = re.findall(r"python -m (tests[\w.]+)", text)
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def test_files_and_modules_are_named_at_all() -> None:
    """The patterns of the test above still find what they look for."""
    text = "".join(READMES.values())
    assert len(set(re.findall(r"tests/benchmarks/results/\w+\.json", text))) > 10
    assert len(set(re.findall(r"python -m (tests[\w.]+)", text))) > 10


def anchors(text: str) -> set[str]:
    """What a link may lead to in a page: its titles as GitHub and GitLab write them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("readme", READMES)
def test_every_relative_link_leads_somewhere(readme: str) -> None:
    """A reader who follows a link from one README finds the page, and the title on it."""
    folder = (ROOT / readme).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", READMES[readme]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        assert not path.startswith("/"), link
        target = (folder / path).resolve() if path else ROOT / readme
        assert target.exists(), link
        if anchor:
            page = target / "README.md" if target.is_dir() else target
            assert anchor in anchors(page.read_text()), link
        elif target.is_dir():
            assert (target / "README.md").exists(), link


def test_every_readme_is_reached_from_the_first() -> None:
    reached, waiting = set(), [USERS]
    while waiting:
        readme = waiting.pop()
        if readme in reached:
            continue
        reached.add(readme)
        links = re.findall(r"\]\(([^)\s#]+README\.md)", READMES[readme])
        waiting += [((ROOT / readme).parent / link).resolve().relative_to(ROOT).as_posix() for link in links]
    assert set(READMES) - reached == set()


def samples_of(real_images: Path, raw: Path, per_folder: int) -> None:
    """A few images of every folder of the two public sets, and of one as a laboratory's own."""
    for name in ("PBC_dataset_normal_DIB", "AML-Cytomorphology_LMU"):
        for folder in sorted(path for path in (real_images / name).rglob("*") if path.is_dir()):
            files = sorted(path for path in folder.iterdir() if path.is_file())[:per_folder]
            if files:
                target = raw / name / folder.relative_to(real_images / name)
                target.mkdir(parents=True, exist_ok=True)
                for path in files:
                    shutil.copy(path, target)
    shutil.copytree(raw / "PBC_dataset_normal_DIB", raw / "our_slides")
    shutil.move(raw / "our_slides" / "ig", raw / "our_slides" / "immature granulocyte")


def run_tiny(command: str, folder: Path) -> None:
    """The command as it stands there, but for sizes."""
    found = launched(command)
    assert found is not None, command
    launcher, arguments = found
    tiny = TINY.get(launcher, {})
    kept = [argument for argument in arguments if argument.split("=")[0] not in tiny]
    if launcher == "train_classifier":  # runs of different networks, all of which are one tiny one here
        kept += [f"seed={sum(map(ord, argument))}" for argument in arguments if argument.startswith("run=")]
    made = [sys.executable, str(ROOT / "launchers" / f"{launcher}.py"), *kept, *(f"{k}={v}" for k, v in tiny.items())]
    done = subprocess.run(made, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(made)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_laboratory_s_way_runs_step_by_step(real_images: Path, tmp_path: Path) -> None:
    samples_of(real_images, tmp_path / "raw", 40)
    shutil.copytree(tmp_path / "raw/our_slides/monocyte", tmp_path / "raw/new_slide")
    for command in commands(USERS, "Your own slides, step by step"):
        run_tiny(command, tmp_path)
    for made in ("runs/lab/report.html", "runs/lab2/model_card.md", "predictions/new_slide/predictions.csv"):
        assert (tmp_path / made).is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_laboratory_adapts_the_shipped_classifier(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small classifier of phantoms is shipped for the test; the laboratory's cells are of another stain."""
    run = tmp_path / "runs/tiny"
    monkeypatch.chdir(tmp_path)
    for launcher, arguments in (
        (
            train_classifier,
            [f"shards={tiny_dataset.root}", f"run={run}", *(f"{k}={v}" for k, v in TINY["train_classifier"].items())],
        ),
        (export, [f"run={run}", "format=safetensors", f"out={tmp_path / 'shipped'}"]),
    ):
        launcher.main(arguments)
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "shipped")
    for name, seed in (("raw/PBC_dataset_normal_DIB", 1), ("slides/labelled", 2), ("slides/today", 3)):
        render_phantoms(
            tmp_path / "drawn" / str(seed),
            12,
            slides=6,
            size=40,
            seed=seed,
            workers=1,
            cell_types=TINY_TYPES,
            progress=False,
        )
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "drawn" / str(seed) / ("giemsa" if seed == 1 else "violet"), tmp_path / name)
    for command in commands("launchers/README.md", LABORATORY):
        name, arguments = launched(command) or ("", [])
        tiny = TINY.get(name, {})
        kept = [argument for argument in arguments if argument.split("=")[0] not in tiny]
        importlib.import_module(f"launchers.{name}").main([*kept, *(f"{key}={value}" for key, value in tiny.items())])
    for made in ("predictions/one_stain/gallery.html", "exports/lab/model.onnx", "runs/together/report.html"):
        assert (tmp_path / made).is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_commands_of_the_other_sections_run(real_images: Path, tmp_path: Path) -> None:
    samples_of(real_images, tmp_path / "raw", 60)
    shutil.copytree(tmp_path / "raw/PBC_dataset_normal_DIB/monocyte", tmp_path / "slides/today")
    shutil.rmtree(tmp_path / "raw/our_slides")  # they are in the data set already
    for readme, section in RUN:
        for command in commands(readme, section):
            if not any(words in command for words in (*LEFT_OUT, "our_slides")):
                run_tiny(command, tmp_path)
    assert (tmp_path / "runs/balanced/report.html").is_file()
