"""If these fail, who adds an algorithm must change files of the project, and carries these changes from then on."""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from tests.launching import ROOT, Finished
from trainer.loop.log import read_records
from trainer.runs.record import RunRecord

SOURCES = ("data_pipeline", "models", "trainer", "launchers", "configs")
# What a user would write, beside nothing else: a task's algorithm and its preset.
MODULES = {
    "classification": '''"""The focal loss (Lin et al. 2017, eq. 4)."""

from torch.nn import functional

from data_pipeline.stream.stream import MicroBatch
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.classification.algorithms.cross_entropy import CrossEntropy


@registered
class ToyClassification(CrossEntropy):
    """Images that are named right count little."""

    def _terms(self, part: MicroBatch) -> Terms:
        logits = self._logits(part.images).float()
        loss = functional.cross_entropy(logits, part.labels, reduction="none")
        right = (logits.argmax(dim=1) == part.labels).float()
        return {"loss": (1.0, (1 - (-loss).exp()).square() * loss), "accuracy": (0.0, right), "entropy": (0.0, loss)}
''',
    "stain": '''"""CycleGAN with a hinge loss, whose margin is an option."""

from dataclasses import dataclass

import torch

from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.stain.algorithm import CycleGanBase, CycleOptions, Pair


@dataclass(frozen=True)
class ToyOptions(CycleOptions):
    """Also the margin."""

    margin: float = 1.0


@registered
class ToyStain(CycleGanBase):
    """Patches that are told apart by the margin teach the critic nothing more."""

    Options = ToyOptions

    def _adversarial(self, patch_map: torch.Tensor) -> torch.Tensor:
        return losses.wasserstein_generator(losses.score(patch_map))

    def _critic_terms(self, pair: Pair) -> Terms:
        margin, terms = self.options.margin, []
        for patch_map in self._judge(pair, self._fakes(pair)):
            on_real, on_fake = losses.score(patch_map).chunk(2)
            terms.append(losses.hinge_discriminator(on_real / margin, on_fake / margin))
        return {"critic": (1.0, torch.cat(terms))}
''',
    "conditional": '''"""A conditional GAN with a hinge loss."""

from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithm import ConditionalAlgorithm, Generated, Judged


@registered
class ToyConditional(ConditionalAlgorithm):
    """The critic is shown the types."""

    critic_sees_types = True

    def _critic_terms(self, judged: Judged) -> Terms:
        scores = losses.score(judged.on_real), losses.score(judged.on_generated)
        return {"critic": (1.0, losses.hinge_discriminator(*scores))}

    def _generator_terms(self, made: Generated) -> Terms:
        return {"adversarial": (1.0, losses.wasserstein_generator(losses.score(made.answers)))}
''',
    "few_shot": '''"""A plain GAN with a hinge loss, from scratch on the rare type."""

import torch

from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.few_shot.episode import Draw, Episode, judge


@registered
class ToyFewShot(Episode):
    """No augmentation, no encoder."""

    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        with torch.no_grad():
            generated = self._generate(images, draw)
        real, made = judge(self.networks["discriminator"], images, generated)
        return {"discriminator": (1.0, losses.hinge_discriminator(real, made))}

    def generator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        answers = self.networks["discriminator"](self._generate(images, draw))
        return {"adversarial": (1.0, losses.wasserstein_generator(answers))}
''',
}
PRESETS = {
    "classification": """# @package _global_
model:
  name: toy_classification
  architecture: timm
  timm_name: test_efficientnet_gn
train:
  algorithm: toy_classification
""",
    "stain": """algorithm: toy_stain
options:
  margin: 2.0
generator: {width: 4, depth: 3}
critic: {width: 4, layers: 2}
""",
    "conditional": """algorithm: toy_conditional
critic_steps: 2
generator: {width: 4, latent_size: 6, blocks: [1, 1, 1]}
critic: {width: 4, hidden: 8, blocks: [1, 1, 1]}
""",
    "few_shot": """algorithm: toy_few_shot
generator: {width: 2, latent_size: 6}
discriminator: {width: 2}
inner: {discriminator_steps: 1, generator_steps: 1}
""",
}
LAUNCHERS = {
    "classification": "train_classifier",
    "stain": "train_stain_gan",
    "conditional": "train_conditional_gan",
    "few_shot": "train_few_shot_gan",
}
LENGTH = (
    *("data.image_size=32", "data.threads=1", "train.precision=fp32", "train.log_every=1"),
    *("train.epochs=1", "train.iterations_per_epoch=2", "train.global_batch=6"),
)
MORE = {
    "classification": ("data.domains=[giemsa]",),
    "stain": ("a=giemsa", "b=violet", "samples_per_type=1"),
    "conditional": ("data.domains=[giemsa]", "samples_per_type=1"),
    "few_shot": (
        "data.domains=[giemsa]",
        "rare_types=[basophil]",
        "shots=3",
        "sheet_columns=3",
        "adaptation.images=12",
    ),
}
# Launchers of the copy, one after the other, forked from a process that has imported torch and the tasks once.
LAUNCH = """
import json, os, runpy, sys
import trainer.runs.training
from trainer.runs import registry
folder, commands = sys.argv[1], json.loads(sys.argv[2])
assert trainer.runs.training.__file__.startswith(folder)
for task in ("classification", "stain", "conditional", "few_shot"):
    registry.task(task)
codes = []
for number, (launcher, *arguments) in enumerate(commands):
    child = os.fork()
    if not child:
        for stream, descriptor in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = [f"{folder}/launchers/{launcher}.py", *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@dataclass(frozen=True)
class Extended:
    """A copy of the project with four algorithms of its user's, and what its launchers did.

    done: by task, of the training, of --help and of an algorithm that is not there.
    """

    folder: Path
    added: frozenset[Path]
    runs: Mapping[str, Path]
    done: Mapping[str, tuple[Finished, Finished, Finished]]


@pytest.fixture(scope="module")
def extended(two_stains: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Extended:
    folder, work = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("work")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    added, commands = set(), []
    for task, launcher in LAUNCHERS.items():
        module = Path("trainer/tasks") / task / "algorithms" / f"toy_{task}.py"
        preset = Path("configs/model") / f"toy_{task}.yaml"
        (folder / module).write_text(MODULES[task])
        (folder / preset).write_text(PRESETS[task])
        added |= {module, preset}
        training = (
            launcher,
            f"shards={two_stains.root}",
            f"run={work / task}",
            f"model=toy_{task}",
            *LENGTH,
            *MORE[task],
        )
        key = "train.algorithm" if task == "classification" else "model.algorithm"
        commands += [training, (launcher, "--help"), (*training, f"{key}=nonsense")]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(folder), json.dumps(commands)],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ends = [
        Finished(code, *((work / f"{number}.{stream}").read_text() for stream in ("stdout", "stderr")))
        for number, code in enumerate(json.loads(done.stdout))
    ]
    by_task = {
        task: (ends[at], ends[at + 1], ends[at + 2]) for at, task in zip(range(0, 12, 3), LAUNCHERS, strict=True)
    }
    return Extended(folder, frozenset(added), {task: work / task for task in LAUNCHERS}, by_task)


@pytest.mark.parametrize("task", LAUNCHERS)
def test_an_algorithm_is_one_module_and_one_preset(extended: Extended, task: str) -> None:
    """It trains by the task's launcher, its run and its report name it, and the launcher lists it."""
    training, help_text, refused = extended.done[task]
    run, name = extended.runs[task], f"toy_{task}"
    assert training.returncode == 0, training.stderr
    assert training.stdout.strip().splitlines()[-1] == str(run / "report.html")
    trained_in = run / "adapted/basophil" if task == "few_shot" else run
    steps = [record for record in read_records(trained_in) if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [1, 2]
    assert {"classification": "entropy", "few_shot": "discriminator"}.get(task, "critic") in steps[0]
    settings = (run / "config.yaml").read_text()
    assert f"algorithm: {name}\n" in settings
    assert f"kind: {task}\n" in settings
    assert name in (run / "report.html").read_text()
    assert help_text.returncode == 0
    assert name in help_text.stdout.replace(",", " ").split()
    assert refused.returncode == 2
    line = refused.stderr.strip().splitlines()[-1]
    assert "algorithm=nonsense is none of" in line
    assert name in line.replace(",", " ").split()


def test_another_copy_refuses_the_run_by_the_algorithm_s_name(extended: Extended) -> None:
    """A run of an algorithm that is not there is one line, wherever it is read."""
    with pytest.raises(UserError, match=r"config\.yaml: model\.algorithm=toy_stain is none of cyclegan, pix2pix"):
        RunRecord.read(extended.runs["stain"])


def test_nothing_else_of_the_project_was_changed(extended: Extended) -> None:
    there = {path.relative_to(extended.folder) for path in extended.folder.rglob("*") if path.is_file()}
    mine = {
        path.relative_to(ROOT)
        for name in SOURCES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there - mine == extended.added
    assert mine <= there
    same, _, _ = filecmp.cmpfiles(ROOT, extended.folder, [str(path) for path in mine], shallow=False)
    assert len(same) == len(mine)
