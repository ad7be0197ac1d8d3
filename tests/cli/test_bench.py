"""`pom-export bench` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pom_export
from pom_export.bench.model_file import FileWorkload
from pom_export.cli.main import run

CHECKPOINT = str(Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt")
QUICK = ["--repeats", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bench") / "m.onnx"
    pom_export.export(CHECKPOINT, path, mask="causal")
    return str(path)


@pytest.mark.slow
def test_prints_one_json_object(capsys: pytest.CaptureFixture[str], model: str) -> None:
    options = ["--tokens", "8,16", "--backends", "function,kernel,tensorrt", "--no-memory"]
    assert run(["bench", model, *QUICK, *options, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    assert result["backends"] == ["function", "kernel"]
    assert result["not_run"].keys() == {"tensorrt"}
    assert [(point["batch"], point["tokens"]) for point in result["points"]] == [(1, 8), (1, 16)]
    for point in result["points"]:
        assert point["timings"].keys() == set(result["backends"])
        assert all(timing["runs"] == 1 for timing in point["timings"].values())
        assert point["to_kernel"]["function"] > 0
        assert point["memory"] == {}
    machine = result["machine"]
    assert machine["pom_cpu_kernel"]
    assert {"processor", "memory_bytes", "torch", "onnxruntime", "date"} <= machine.keys()
    assert result["options"]["threads"] == 1
    assert str(Path(model).parent) not in printed.out
    assert os.uname().nodename not in printed.out


@pytest.mark.parametrize("memory", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_speaks_to_people_and_fills_a_folder(
    memory: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    options = [*QUICK, "--tokens", "8", *([] if memory else ["--no-memory"])]
    assert run(["bench", model, *options, "-o", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr()
    assert "tokens  function  kernel  function/kernel" in printed.out
    assert ("MiB by which the peak of resident memory grows" in printed.out) == memory
    assert "tokens 8: timing function, kernel" in printed.err
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["results.json", "table.md"]
    point = json.loads((tmp_path / "new" / "results.json").read_text())["points"][0]
    assert point["memory"].keys() == ({"function", "kernel"} if memory else set())


BAD_OPTIONS = [
    (["--backends", "kernel,trt"], "'--backends': 'trt' is not one of function, kernel, tensorrt."),
    (["--backends", "kernel,tensorr"], "Did you mean 'tensorrt'?"),
    (["--backends", "torch"], "'torch' is not one of"),
    (["--backends", "kernel,kernel"], "'kernel,kernel' names one twice"),
    (["--tokens", "0"], "'--tokens': 0 is not in the range 1<=x<="),
    (["--tokens", "many"], "'many' is not a valid integer"),
    (["--tokens", "16,,32"], "'' is not a valid integer"),
    (["--tokens", "9" * 4000], "9 is not in the range"),
    (["--tokens", "8,16,8"], "names one twice"),
    (["--batch", "-1"], "'--batch': -1 is not in the range"),
    (["--repeats", "0"], "0 is not in the range x>=1"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:30])
def test_bad_options_are_refused_before_the_file_is_read(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "none.onnx", *options]) == 2
    assert message in capsys.readouterr().err


BAD_COMMANDS = {
    "too many threads": (["{model}", "--threads", "100000"], "--threads must be 1 to"),
    "no GPU": (["{model}", "--backends", "tensorrt"], "no backend can run: tensorrt: it needs a GPU"),
    "no such file": (["{tmp}/none.onnx"], "does not exist"),
    "checkpoint": ([CHECKPOINT], "Export it: pom-export export"),
    "text as ONNX": (["{text}.onnx"], "not a complete ONNX model"),
    "output below nothing": (["{model}", "-o", "{tmp}/no/no"], "mkdir -p"),
    "output is a file": (["{model}", "-o", "{text}"], "is a file"),
    "unwritable": (["{model}", "-o", "/proc/no"], "cannot create folder"),
}


@pytest.mark.parametrize("kind", BAD_COMMANDS)
def test_bad_input_ends_in_one_clear_line(
    kind: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    text = tmp_path / "text"
    for file in (text, tmp_path / "text.onnx"):
        file.write_text("no model at all, just text")
    arguments, message = BAD_COMMANDS[kind]
    places = {"tmp": output, "text": text, "model": model}
    assert run(["bench", *(argument.format(**places) for argument in arguments), "--json"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert message in "{error}. {hint}".format(**json.loads(printed.out))
    assert len(printed.err.splitlines()) == 1
    assert list(output.iterdir()) == []


def test_help_names_the_backends_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in FileWorkload.known)
    code = (
        "import sys; from pom_export.cli.main import run; run(['bench', '--help']);"
        "assert not {'torch', 'numpy', 'onnxruntime', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def children(process_id: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_leaves_no_process_and_no_file(number: int, code: int, tmp_path: Path, model: str) -> None:
    """If the command itself is killed, its work folder stays, since nobody is left to remove it; its worker ends."""
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    options = ["--tokens", "64", "--repeats", "100000000", "-o", str(output)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pom_export", "bench", model, *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "timing" in line:
            break
    while not (workers := children(process.pid)):
        time.sleep(0.01)
    # Long enough for the worker to arrange that it ends with its parent.
    time.sleep(2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        assert list(scratch.iterdir()) == []
        assert not output.exists()


def alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
