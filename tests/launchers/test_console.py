"""If these fail, a file name that the terminal cannot show is a traceback, or --help does not list what there is."""

import ast
import io
import sys

import pytest

from launchers.console import CONFIGS, LISTS, fill_lists, launch
from tests.launching import ROOT


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_any_name_can_be_printed_in_any_locale(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, errors="strict"))
    monkeypatch.setattr(sys, "argv", ["build_shards.py"])
    launch(lambda arguments: print("Zelle_\udce4 \u7d30\u80de"), None)
    sys.stdout.flush()
    assert written.getvalue().startswith(b"Zelle_\\udce4 ")


def test_help_lists_every_model_file_under_one_task() -> None:
    listed = [name for place in LISTS if place.startswith("models:") for name in LISTS[place]().split(", ")]
    assert sorted(listed) == sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def test_a_list_is_wrapped_at_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LISTS, "things", lambda: ", ".join(["thing"] * 40))
    first, *others, last = fill_lists("  thing=NAME  {things}\n  table={a: 0.5}").splitlines()
    assert first.startswith("  thing=NAME  thing, thing")
    assert others
    assert all(line.startswith(" " * 14 + "thing") and len(line) <= 120 for line in others)
    assert last == "  table={a: 0.5}"


def test_every_list_that_a_launcher_asks_for_is_known() -> None:
    for path in sorted((ROOT / "launchers").glob("*.py")):
        documentation = ast.get_docstring(ast.parse(path.read_text()))
        fill_lists(documentation or "")
