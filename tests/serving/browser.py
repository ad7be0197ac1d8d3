"""A headless Chromium that tests drive by its own protocol, over a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without its sandbox, which needs rights that containers do not give; it only opens our own page.
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-proxy-server", "--window-size=1000,1000"),
)
LONGEST_S = 60


class Page:
    """An open page."""

    def __init__(self, commands: int, answers: int, url: str) -> None:
        self._commands, self._answers = commands, answers
        self._rest, self._count, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.problems: list[str] = []
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Page.enable")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def call(self, method: str, **params: Any) -> Any:
        """Send a command, and return its result."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._count:
                assert "error" not in message, message["error"]
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(message["params"]))

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + LONGEST_S
        while not self.value(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def text(self, element: str) -> str:
        """Return an element's text."""
        return self.value(f"document.getElementById({element!r}).textContent")

    def fill(self, **values: str) -> None:
        """Fill fields, named by id with _ for -."""
        for name, value in values.items():
            self.value(f"document.getElementById({name!r}).value = {json.dumps(value)}")

    def click(self, element: str) -> None:
        """Click an element, which must be visible and enabled."""
        it = f"document.getElementById({element!r})"
        assert self.value(f"{it}.checkVisibility() && !{it}.disabled"), element
        self.value(f"{it}.click()")

    def choose(self, tab: str) -> None:
        """Choose a tab."""
        self.value(f"document.querySelector('nav [data-name={tab}]').click()")

    def picture(self, path: Path) -> None:
        """Save a picture of the page."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _message(self) -> Any:
        while b"\0" not in self._rest:
            part = os.read(self._answers, 2**16)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def page(url: str) -> Iterator[Page]:
    """Open a page, or skip the test where there is no Chromium."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium was found on the PATH")
    to_read, commands = os.pipe()
    answers, to_write = os.pipe()
    # Some of the browser's processes write to its profile for a moment after it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # It reads commands from file 3 and writes answers to file 4.
        started = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        options = [*OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        process = subprocess.Popen(
            ["bash", "-c", started, "bash", browser, *options],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        try:
            yield Page(commands, answers, url)
        finally:
            process.terminate()
            process.wait()
            os.close(commands)
            os.close(answers)
