"""docs/tutorial.md works: its programs and commands run in order, unchanged."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from pom_export.cli.main import run

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
PROGRAMS = dict(re.findall(r'```python title="(.*?)"\n(.*?)```', PAGE, re.DOTALL))
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\$ pom-export (.*)$", PAGE, re.MULTILINE)


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in PROGRAMS.items():
        Path(name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert set(PROGRAMS) == {"train.py", "serve.py", "own.py"}

    trained = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"loss \d\.\d\d after 60 steps\n", trained.stdout)

    assert [command.split()[0] for command in COMMANDS] == [
        "inspect",
        *("export", "verify", "generate"),
        *("export", "verify", "generate"),
    ]
    for command in COMMANDS:
        assert run(shlex.split(command)) == 0, command
    assert "passed" in capsys.readouterr().out
    assert Path("my_lm.html").exists()

    exec("\n".join(SNIPPETS), {})  # which asserts

    with serving(Path("serve.py")) as address:
        first = ask(address, "a", b"The with statement")
        second = ask(address, "a", b" and")
        whole = ask(address, "b", b"The with statement" + first + b" and")
    assert len(first) == len(second) == 20
    assert second == whole  # a conversation goes on as one text does


@contextmanager
def serving(program: Path) -> Iterator[str]:
    """Run the program's handler on a free port."""
    spec = importlib.util.spec_from_file_location("serve", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with ThreadingHTTPServer(("127.0.0.1", 0), module.Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def ask(address: str, conversation: str, prompt: bytes) -> bytes:
    """Return the 20 bytes that continue a prompt."""
    request = {"conversation": conversation, "prompt": prompt.decode(), "max_tokens": 20}
    with urllib.request.urlopen(address, json.dumps(request).encode()) as answer:
        return answer.read()
