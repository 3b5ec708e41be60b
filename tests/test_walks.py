"""If these fail, a newcomer who follows trainer/README.md's worked examples is led astray."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.catalog import Dataset
from tests.data_pipeline.raw_images import write_image
from tests.launching import ROOT

WALKS = re.split(r"^### ", (ROOT / "trainer/README.md").read_text().partition("## Worked examples")[2], flags=re.M)[1:]
# What a reader looks for when the last command has ended: what holds a word, and the word.
ENDS = {
    "Add a GAN": ("runs/hinge_gan/report.html", "hinge_gan"),
    "Add a measure": ("runs/mistakes/report.html", "Share of mistakes"),
    "Add a raw layout": ("data/clinic/build_report.json", "clinic"),
    "Add an augmentation": ("runs/brightness/config.yaml", "brightness: 0.1"),
}


def test_every_walk_has_its_end() -> None:
    assert [walk.splitlines()[0] for walk in WALKS] == list(ENDS)


@pytest.mark.parametrize("walk", WALKS, ids=list(ENDS))
def test_a_walk_leads_where_it_says(walk: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Its files as they stand in the README, in a copy of the project; its commands, on a smaller data set."""
    for folder in ("data_pipeline", "models", "trainer", "launchers", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tiny_dataset.root, tmp_path / "runs/quickstart/dataset")
    for number, name in enumerate(("s1/basophil_1.png", "s1/monocyte_2.png", "s2/basophil_3.png", "s2/monocyte_4.png")):
        write_image(tmp_path / "raw/clinic" / name, number)
    files = re.findall(r"`([\w/]+\.(?:py|yaml))`[^`]*```(?:python|yaml)\n(.*?)```", walk, flags=re.S)
    assert files
    for name, content in files:
        assert not (tmp_path / name).exists(), "a walk edits nothing"
        (tmp_path / name).write_text(content)
    commands = re.findall(r"```sh\n(.*?)```", walk, flags=re.S)
    for line in "".join(commands).replace("\\\n", " ").splitlines():
        arguments = shlex.split(line.replace("accelerate launch ", "python "))
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *arguments[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        if "--help" in line:
            assert Path(files[0][0]).stem in done.stdout
    place, word = ENDS[walk.splitlines()[0]]
    assert word in (tmp_path / place).read_text()
