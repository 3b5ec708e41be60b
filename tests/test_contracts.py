"""If these fail, an import may point upwards, or two packages import each other, and nobody is told."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launching import ROOT

LINT = Path(
    shutil.which("lint-imports", path=str(ROOT / ".venv/bin")) or shutil.which("lint-imports") or "lint-imports"
)
# A file, the import planted in it, and the contract that forbids it.
PLANTED = {
    "upwards": ("trainer/loop/fit.py", "import trainer.tasks.stain.config", "imports point one way"),
    "another task": ("trainer/tasks/stain/load.py", "import trainer.tasks.few_shot.config", "tasks do not import"),
    "cycle": ("trainer/metrics/selective.py", "import trainer.runs.config", "no package of trainer is in a cycle"),
    "rooms": (
        "trainer/tasks/classification/reports/report.py",
        "import trainer.tasks.classification.adaptation.config",
        "no package of trainer is in a cycle",
    ),
    "models": ("models/layers.py", "import data_pipeline.names", "imports point one way"),
}


def lint(folder: Path) -> str:
    done = subprocess.run([str(LINT), "--no-cache"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode == 0) == ("0 broken" in done.stdout)
    return done.stdout


def test_the_imports_keep_to_their_contracts() -> None:
    assert "3 kept, 0 broken" in lint(ROOT)


@pytest.mark.parametrize("planted", list(PLANTED))
def test_a_planted_import_breaks_its_contract(planted: str, tmp_path: Path) -> None:
    for folder in ("data_pipeline", "models", "trainer", "launchers"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    place, line, contract = PLANTED[planted]
    path = tmp_path / place
    path.write_text(f"{path.read_text()}\n{line}\n")
    (broken,) = [line for line in lint(tmp_path).splitlines() if line.startswith(contract) and line.endswith("BROKEN")]
    assert contract in broken
