"""If these fail, a laboratory that has its own layout of raw images has to edit the code in many places."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import data_pipeline.sources
from data_pipeline.catalog import Dataset
from data_pipeline.sources import layouts
from data_pipeline.sources.declaration import raw_layout
from tests.data_pipeline.raw_images import write_image
from tests.launching import ROOT


def _example() -> str:
    """The module that the docstring of data_pipeline/sources explains how to write."""
    documentation = data_pipeline.sources.__doc__ or ""
    code = documentation[documentation.index("    from data_pipeline") : documentation.index("and is built by")]
    return textwrap.dedent(code)


def test_a_layout_is_one_new_module_and_nothing_else_is_edited(tmp_path: Path) -> None:
    tree, raw = tmp_path / "tree", tmp_path / "raw"
    for folder in ("data_pipeline", "models", "trainer", "launchers", "configs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "data_pipeline" / "sources" / "clinic.py").write_text(_example())
    for number, name in enumerate(("s1/basophil_1.png", "s1/monocyte_2.png", "s2/basophil_3.png", "s2/monocyte_4.png")):
        write_image(raw / name, number)

    def build_shards(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tree / "launchers" / "build_shards.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    (line,) = [line for line in build_shards("--help").stdout.splitlines() if line.strip().startswith("clinic=RAW")]
    assert line.endswith("SLIDE/TYPE_NUMBER.png, as the clinic's scanner names them")
    done = build_shards("shards=data", f"clinic={raw}", "ratio=[1,0,0]")
    assert done.returncode == 0, done.stderr
    rows = Dataset.open(tmp_path / "data").samples()
    assert sorted(zip(rows["cell_type"], rows["group"], strict=True)) == [
        ("basophil", "clinic/s1"),
        ("basophil", "clinic/s2"),
        ("monocyte", "clinic/s1"),
        ("monocyte", "clinic/s2"),
    ]
    write_image(raw / "s3" / "strange_5.png", 5)
    refused = build_shards("shards=data")  # the source is remembered
    assert refused.returncode == 2
    assert "unknown label" in refused.stderr
    assert "name the images TYPE_NUMBER.png" in refused.stderr


def test_the_layouts_of_the_product_are_registered_once() -> None:
    own = [name for name, layout in layouts().items() if layout.survey.__module__.startswith("data_pipeline.")]
    assert own == ["barcelona", "bccd", "munich", "fields", "folder", "table", "unlabelled", "whole_fields"]
    with pytest.raises(ValueError, match="two raw layouts are called munich"):
        raw_layout("munich", "another")(lambda declaration: layouts()["munich"].survey(declaration))
