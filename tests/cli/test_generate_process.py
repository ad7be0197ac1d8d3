"""`pom-export generate` as a process: its streams, signals, and what it loads."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pom_export.cli.main import run
from tests.streaming_graphs import running_sum_model

# As warm as it takes for any bytes to come.
OPTIONS = ["--prompt", "Once upon", "--temperature", "60", "--seed", "3"]
COMMAND = [sys.executable, "-m", "pom_export", "generate"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(running_sum_model(tmp_path / "m.onnx"))


@pytest.fixture(scope="module")
def by_a_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, subprocess.CompletedProcess[bytes]]:
    """A model, and what a process wrote of it whose stdout lacks most characters and is its stderr too."""
    model = str(running_sum_model(tmp_path_factory.mktemp("generate") / "m.onnx"))
    code = (
        "import sys; from pom_export.cli.main import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules, 'it loads torch'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", model, *OPTIONS, "--max-tokens", "30"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    return model, done


def test_a_run_needs_no_torch(by_a_process: tuple[str, subprocess.CompletedProcess[bytes]]) -> None:
    _, done = by_a_process
    assert done.returncode == 0, done.stdout


def test_a_text_and_the_messages_about_it_share_no_line(
    by_a_process: tuple[str, subprocess.CompletedProcess[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    model, done = by_a_process
    assert run(["generate", model, *OPTIONS, "--max-tokens", "30"]) == 0
    text = capsys.readouterr().out.encode("latin-1", "backslashreplace")
    assert done.stdout.startswith(text + b"\n30 tokens, ")


def test_characters_that_stdout_lacks_are_escaped(
    by_a_process: tuple[str, subprocess.CompletedProcess[bytes]],
) -> None:
    _, done = by_a_process
    assert rb"\ufffd" in done.stdout


def test_a_closed_stdout_is_no_failure(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run(["generate", model, *OPTIONS, "--max-tokens", "5"]) == 0
    assert capsys.readouterr().err.startswith("5 tokens, ")


@pytest.fixture
def running(model: str) -> Iterator[Any]:
    """Start a long run in a separate process, whose stdout is a pipe."""
    processes = []

    def start(*options: str) -> Any:
        process = subprocess.Popen(
            [*COMMAND, model, *OPTIONS, "--max-tokens", "100000000", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # what is read here is all that has left the pipe
            # A background job of a shell script ignores SIGINT, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_can_be_continued(
    number: int, code: int, running: Any, model: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    state = str(tmp_path / "state")
    process = running("--save-state", state)
    text = process.stdout.read(500)
    process.send_signal(number)
    more, errors = process.communicate(timeout=60)
    text += more
    assert process.returncode == code
    assert errors.decode().strip().splitlines() == [f"pom-export: {'interrupted' if code == 130 else 'terminated'}"]

    count = str(len(text) + 500)
    assert run(["generate", model, "--load-state", state, "--max-tokens", "300"]) == 0
    text += capsysbinary.readouterr().out
    assert run(["generate", model, *OPTIONS, "--max-tokens", count]) == 0
    assert capsysbinary.readouterr().out.startswith(text)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "state"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="needs Linux's small pipes and /proc")
def test_an_interrupt_while_nobody_reads_ends_it(running: Any, model: str, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    process = running("--save-state", state)
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 8192)
    text = process.stdout.read(1)
    # When the process only waits, the pipe is full.
    while not asleep(process.pid):
        pass
    process.send_signal(signal.SIGINT)
    more, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    text += more
    done = subprocess.run(
        [*COMMAND, model, "--load-state", state, "--max-tokens", "50"], capture_output=True, check=True
    )
    whole = subprocess.run(
        [*COMMAND, model, *OPTIONS, "--max-tokens", str(len(text) + 100)], capture_output=True, check=True
    )
    assert whole.stdout.startswith(text + done.stdout)


def asleep(process_id: int) -> bool:
    """Return whether a process has used no CPU time for a few tenths of a second."""

    def used() -> list[str]:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = used()
    time.sleep(0.3)
    return used() == before


def test_an_interrupt_without_a_file_leaves_none(running: Any, tmp_path: Path) -> None:
    process = running()
    process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_text(running: Any) -> None:
    process = running()
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 0
    assert b"Broken pipe" not in process.stderr.read()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_stdout_is_one_line(model: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, model, *OPTIONS], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line


def test_a_closed_stdin_is_one_line(model: str) -> None:
    command = f'exec "$0" -m pom_export generate "{model}" --prompt - <&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "pom-export: error: stdin is closed. Give the prompt by --prompt TEXT or --prompt-file FILE"
    ]


def test_help_loads_nothing_large() -> None:
    code = (
        "import sys; from pom_export.cli.main import run; code = run(['generate', '--help']); "
        "assert not {'torch', 'numpy', 'onnxruntime', 'onnx'} & set(sys.modules); sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
