"""The soak run: it passes a server that works, and finds what it is there to find."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import soak
from tests.serving.running import running
from tests.streaming_graphs import running_sum_model

MINUTES = "0.03"


@pytest.mark.slow
def test_a_server_that_works_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=256)
    assert soak.main(["--minutes", MINUTES, "--clients", "6", "--model", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "passed"
    assert {"whole 200", "nonsense 400", "leaves"} <= {line.split(maxsplit=1)[-1].strip() for line in lines}


@pytest.mark.slow
def test_a_status_that_should_not_be_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "_NONSENSE", (b'{"prompt": "this is well", "max_tokens": 1}',))
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=256)
    assert soak.main(["--minutes", MINUTES, "--clients", "6", "--model", str(model)]) == 1
    assert "failed: nonsense: " in capsys.readouterr().out


def test_places_and_sessions_that_are_left_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "_ANSWER_SECONDS", 1.0)
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=256)
    with running(model, streams=6) as server:
        asyncio.run(soak.check_free(server.address[1]))
        server.service.sessions._busy.add("n7")
        with pytest.raises(soak.SoakError, match="session n7 is left in use: 409"):
            asyncio.run(soak.check_free(server.address[1]))
    with running(model, streams=6) as server:
        server.service.model.places._free -= 1
        with pytest.raises(soak.SoakError, match="no answer in 1 s"):
            asyncio.run(soak.check_free(server.address[1]))


def test_growth_is_that_after_the_first_fifth() -> None:
    assert soak.growth([100, 180, 150, 179, 185, 160, 186, 181, 178, 182]) == 2
    assert soak.growth([100 + number for number in range(100)]) == 80
