"""A real browser that presses keys on a page: headless Chromium, spoken to over a pipe (Chrome DevTools Protocol)."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE = 60.0  # seconds
# The virtual codes of keys that do not type a character.
_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One page of a browser."""

    def __init__(self, command: int, answer: int, downloads: Path) -> None:
        self._command, self._answer, self._rest, self._number = command, answer, b"", 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=860, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        os.write(self._command, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                self._rest += os.read(self._answer, 1 << 16) or pytest.fail("the browser has gone")
            line, _, self._rest = self._rest.partition(b"\0")
            found = json.loads(line)
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                result: dict[str, Any] = found["result"]
                return result

    def open(self, page: Path) -> None:
        """Load a file, as a double click on it does."""
        self.call("Page.navigate", url=page.as_uri())
        ready = time.monotonic() + _PATIENCE
        while self.value(f"location.href === {json.dumps(page.as_uri())} && document.readyState") != "complete":
            assert time.monotonic() < ready, f"{page} does not load"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What JavaScript answers on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, identity: str) -> str:
        """What the element with this id shows."""
        return str(self.value(f"document.getElementById({json.dumps(identity)}).innerText"))

    def press(self, *keys: str) -> None:
        """Press and release keys, one after the other: 'x', 'Enter'."""
        for key in keys:
            code = _CODES.get(key, ord(key[0].upper()))
            typed = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            event = {"key": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def photograph(self, path: Path) -> None:
        """Save what the page looks like, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser that saves downloads into `folder`, and keeps its profile there; a test without one is skipped."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no browser here ({', '.join(_NAMES)}): the page of review.py is not tried")
    # The browser reads commands from descriptor 3 and answers on descriptor 4.
    command_read, command = os.pipe()
    answer, answer_write = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    redirected = f'exec "$@" 3<&{command_read} 4>&{answer_write}'
    process = subprocess.Popen(
        ["bash", "-c", redirected, "bash", found, *options, f"--user-data-dir={folder}/profile"],
        pass_fds=(command_read, answer_write),
        stderr=subprocess.DEVNULL,
    )
    os.close(command_read)
    os.close(answer_write)
    try:
        yield Browser(command, answer, folder)
    finally:
        os.close(command)
        process.terminate()
        process.wait(_PATIENCE)
        os.close(answer)


def downloaded(folder: Path, name: str) -> Path:
    """A file that the browser saves, once it is whole."""
    ready = time.monotonic() + _PATIENCE
    while not (folder / name).is_file():
        assert time.monotonic() < ready, f"{name} was not saved"
        time.sleep(0.05)
    return folder / name
