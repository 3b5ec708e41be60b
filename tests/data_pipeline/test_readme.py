"""If these fail, data_pipeline/README.md promises what no test holds."""

import ast
import re

from tests.launching import ROOT


def test_every_test_that_the_readme_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "data_pipeline/README.md").read_text())
    assert len(named) > 15
    for path, name in named:
        functions = [
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert name in functions, f"{path}: no {name}"
