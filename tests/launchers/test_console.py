"""If these fail, a file's name that the terminal has no sign for ends a launcher in a traceback."""

import io
import sys

import pytest

from launchers.console import launch


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_any_name_can_be_printed_in_any_locale(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, errors="strict"))
    monkeypatch.setattr(sys, "argv", ["build_shards.py"])
    launch(lambda arguments: print("Zelle_\udce4 \u7d30\u80de"), None)
    sys.stdout.flush()
    assert written.getvalue().startswith(b"Zelle_\\udce4 ")
