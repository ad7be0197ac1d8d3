"""Replicas on Ray: what is sticky, what is kept outside of them, and what the death of one changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import pom_export
from pom_export.cli.main import run
from pom_export.serving.saved_sessions import SessionFolder
from tests.serving.running import running, wait_until

CHECKPOINT = Path(__file__).parents[2] / "samples" / "checkpoints" / "byte_lm.safetensors"
SESSIONS = 60
KEPT = SESSIONS * 2 // 3
TURNS = 2
IDS = [80, 111, 77, 33]


class Sessions:
    """Clients that each continue a text in a session, at the same time.

    Attributes:
        events: how many pieces have come.
    """

    def __init__(self, url: str) -> None:
        self.events = 0
        self._url = url

    def texts(self) -> list[list[str]]:
        with ThreadPoolExecutor(SESSIONS) as clients:
            return list(clients.map(self._session, range(SESSIONS)))

    def _session(self, number: int) -> list[str]:
        with httpx.Client(base_url=self._url, timeout=120, trust_env=False) as client:
            if number % 3 == 0:  # two texts of one prompt, which belong to no session
                return [self._answer(client, number, n=2, logprobs=1, echo=True)]
            return [self._answer(client, number, session=f"s{number}") for _ in range(TURNS)]

    def _answer(self, client: httpx.Client, number: int, **fields: Any) -> str:
        body = {"prompt": f"Session {number} says", "max_tokens": 60, "temperature": 0.9, "seed": number}
        texts = ["", ""]
        with client.stream("POST", "/v1/completions", json=body | fields | {"stream": True}) as parts:
            for line in parts.iter_lines():
                if line.startswith("data: {"):
                    part = json.loads(line.removeprefix("data: "))
                    assert "error" not in part
                    (choice,) = part["choices"]
                    texts[choice["index"]] += choice["text"]
                    self.events += 1
        return "|".join(texts)


def replicas_of(process: int) -> list[int]:
    """Return the processes of the replicas that a server has started."""
    parents: dict[int, int] = {}
    replicas = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if "ServeReplica:pom-export:Replica" in (folder / "cmdline").read_text():
                replicas.append(int(folder.name))
        except OSError:
            continue  # it has ended

    def below(number: int) -> bool:
        return number == process or (number in parents and below(parents[number]))

    return [number for number in replicas if below(number)]


@contextmanager
def started(model: Path, home: Path, *options: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command with three replicas."""
    command = [sys.executable, "-m", "pom_export", "serve", str(model), "--port", "0", "--json", "--threads", "1"]
    # Ray's sockets need a short path, and Ray writes to the user's home.
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*command, "--ray", "--replicas", "3", "--replica-cpus", "0.2", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"HOME": str(home), "RAY_TMPDIR": folder} | variables,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=120)


@contextmanager
def on_ray(model: Path, home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve a model on three replicas; yield the process and the address."""
    with started(model, home, *options) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        yield process, json.loads(line)["url"]


@pytest.mark.slow
def test_why_replicas_do_not_start_is_told(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    model = tmp_path / "m.onnx"
    pom_export.export(CHECKPOINT, model, stateful=True)
    with started(model, tmp_path, POM_CUSTOM_OPS_LIBRARY=str(tmp_path / "none.so")) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "none.so" in json.loads(output)["error"]
    assert "error: Ray Serve cannot deploy it: pom_export.errors.MissingDependencyError: " in errors


@pytest.mark.slow
def test_a_replica_that_is_killed_in_mid_answer_changes_no_text(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    model, folder = tmp_path / "m.onnx", tmp_path / "sessions"
    pom_export.export(CHECKPOINT, model, stateful=True)
    with running(model) as here:
        expected = Sessions(str(here.client.base_url)).texts()
        folder.mkdir()
        stream = pom_export.StreamingSession(model)
        stream.prefill(IDS[:2])
        SessionFolder(folder, here.service.interface).save([("arrays", stream.snapshot())])
    assert len({text for texts in expected for text in texts}) == KEPT * TURNS + SESSIONS - KEPT
    with on_ray(model, tmp_path, "--sessions", str(folder)) as (process, url):
        sessions = Sessions(url)

        def kill() -> None:
            wait_until(lambda: sessions.events > SESSIONS * 20, seconds=120)
            os.kill(replicas_of(process.pid)[0], signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        found = sessions.texts()
        killing.join()
        assert found == expected
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            check_arrays(client, model)
            check_metrics(client)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert f"saved in {folder}: {KEPT + 1} sessions" in errors
    assert len(list(folder.iterdir())) == KEPT + 1


def check_arrays(client: httpx.Client, model: Path) -> None:
    """A saved session of arrays goes on, and what is wrong with a request is told as without Ray."""
    for place in (2, 3):
        body = {"inputs": [IDS[place]], "session": "arrays", "after": place}
        answer = client.post("/v1/steps", json=body).json()
    expected = pom_export.StreamingSession(model).prefill_last(IDS)[0]
    np.testing.assert_allclose(answer["outputs"], expected, rtol=1e-4, atol=1e-4)
    for path, body in (("steps", {"inputs": [256]}), ("completions", {"prompt": [256], "max_tokens": 1})):
        refused = client.post(f"/v1/{path}", json=body)
        assert refused.status_code == 400, refused.text
        assert "256" in refused.json()["error"]["message"]
    assert client.post("/v1/steps", json={"inputs": [1], "session": "arrays", "after": 3}).status_code == 409


def check_metrics(client: httpx.Client) -> None:
    """What all replicas have counted is told together."""

    def value(name: str) -> float:
        lines: Any = client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    # The dead one had read some of the tokens since its last report.
    wait_until(lambda: value("pom_tokens_total") > SESSIONS * TURNS * 60 * 0.8)
    wait_until(lambda: value("pom_streams_limit") == 3 * 64)
    assert value("pom_sessions") == KEPT + 1


def test_ray_is_asked_for_with_its_options_and_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["serve", "m.onnx", "--replicas", "2"]) == 2
    assert "options of replicas are given without --ray. Give it too" in capsys.readouterr().err
    assert run(["serve", "m.onnx", "--ray", "--replicas", "2", "--max-replicas", "1"]) == 2
    assert "2 replicas are more than the most, 1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # so that what the command sets is taken back
    assert run(["serve", str(tmp_path / "m.onnx"), "--ray"]) == 2
    assert "Ray Serve is not installed" in capsys.readouterr().err
