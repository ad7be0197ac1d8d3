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
from pom_export.bench.options import BACKENDS
from pom_export.cli.main import run

CHECKPOINT = str(Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt")
QUICK = ["--repeats", "1", "--warmup", "0", "--threads", "1", "--no-memory", "--no-roofline"]
LAYER = ["layer", "--dim", "16", "--tokens", "8"]
STREAM_QUICK = ["--repeats", "2", "--warmup", "0", "--threads", "1", "--backends", "kernel,attention-shared"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bench") / "m.onnx"
    pom_export.export(CHECKPOINT, path, mask="causal")
    return str(path)


def test_prints_one_json_object(capsys: pytest.CaptureFixture[str], model: str) -> None:
    backends = "torch,function,kernel,attention,matmul"
    assert run(["bench", model, *QUICK, "--tokens", "8,16", "--backends", backends, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    assert result["backends"] == ["function", "kernel", "attention", "matmul"]
    assert result["not_run"].keys() == {"torch"}
    assert [(point["batch"], point["tokens"]) for point in result["points"]] == [(1, 8), (1, 16)]
    for point in result["points"]:
        assert point["timings"].keys() == set(result["backends"])
        assert all(timing["runs"] == 1 for timing in point["timings"].values())
        assert point["to_matmul"]["kernel"] > 0
    machine = result["machine"]
    assert machine["pom_cpu_kernel"]
    assert {"processor", "memory_bytes", "torch", "onnxruntime", "date"} <= machine.keys()
    assert result["options"]["threads"] == 1
    assert str(Path(model).parent) not in printed.out
    assert os.uname().nodename not in printed.out


def test_speaks_to_people_and_fills_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--repeats", "1", "--threads", "1", "--backends", "kernel,matmul"]
    assert run(["bench", *LAYER, *options, "-o", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr()
    assert "tokens  kernel  matmul  kernel/matmul" in printed.out
    assert "MiB by which peak memory grows" in printed.out
    assert "GFLOP/s in matrix products" in printed.out
    assert "tokens 8: timing kernel, matmul" in printed.err
    files = ["latency.png", "latency.svg", "memory.png", "results.json", "table.md"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == files
    point = json.loads((tmp_path / "new" / "results.json").read_text())["points"][0]
    assert point["memory"].keys() == {"kernel", "matmul"}
    assert point["memory_roofline_ms"] > 0


def test_streams_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tokens", "1,20", "--dim", "16", "--degree", "2", "--expand", "1", "--heads", "2", *STREAM_QUICK]
    assert run(["bench", "stream", *options, "-o", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr()
    assert "tokens before  kernel  attention-shared  attention-shared/kernel" in printed.out
    assert "kernel: a token after 20 takes" in printed.out
    assert "taking in 20 tokens with kernel" in printed.err
    files = ["results.json", "stream.png", "stream.svg", "table.md"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == files
    result = json.loads((tmp_path / "new" / "results.json").read_text())
    assert [point["tokens"] for point in result["points"]] == [1, 20]
    for point in result["points"]:
        assert point["timings"].keys() == point["memory"].keys() == {"kernel", "attention-shared"}
        assert all(timing["runs"] == 2 for timing in point["timings"].values())
        # Of 4 layers, a sum of 2 * 16 channels with what rounding takes off it, and the length.
        assert point["state_bytes"]["kernel"] == 4 * 2 * 32 * 4 + 8
        assert point["state_bytes"]["attention-shared"] == 4 * 2 * 16 * 4 * point["tokens"] + 8
    assert result["last_over_first"].keys() == {"kernel", "attention-shared"}
    assert str(tmp_path) not in json.dumps(result)


BAD_COMMANDS = {
    "unknown backend": ([*LAYER, "--backends", "torch,trt"], "unknown backend 'trt'"),
    "backend twice": ([*LAYER, "--backends", "torch,torch"], "twice"),
    "no tokens": (["layer", "--tokens", "0"], "tokens must be 1 to"),
    "tokens in words": (["layer", "--tokens", "many"], "no list of sizes"),
    "tokens left out": (["layer", "--tokens", "16,,32"], "no list of sizes"),
    "huge tokens": (["layer", "--tokens", "9" * 5000], "no list of sizes"),
    "negative batch": ([*LAYER, "--batch", "-1"], "no list of sizes"),
    "too many threads": ([*LAYER, "--threads", "100000"], "threads must be 1 to"),
    "no repeats": ([*LAYER, "--repeats", "0"], "repeats must be at least 1"),
    "budget that is no number": ([*LAYER, "--budget", "nan"], "budget must be at least 0, got nan"),
    "negative seed": ([*LAYER, "--seed", "-1"], "seed must be at least 0"),
    "unknown mask": ([*LAYER, "--mask", "diagonal"], "unknown mask 'diagonal'"),
    "family of a layer": ([*LAYER, "--family", "pom-v1"], "--family does not go with a named layer"),
    "odd layer": (["layer", "--dim", "16", "--heads", "5"], "n_sel_heads must divide"),
    "degree 99": ([*LAYER, "--degree", "99"], "degree must be 1 to 16"),
    "mask of a stream": (["stream", "--mask", "causal"], "--mask does not go with a stream"),
    "batch of a stream": (["stream", "--batch", "2"], "a stream is timed with batch 1"),
    "stream without mixers": (["stream", "--dim", "16", "--backends", "attention-shared"], "no mixer can run"),
    "stream of a layer": ([*LAYER, "--backends", "attention-shared"], "no backend can run layer: attention-shared"),
    "odd stream": (["stream", "--dim", "15"], "heads of even width"),
    "no such file": (["{tmp}/none.onnx"], "does not exist"),
    "no such checkpoint": (["{tmp}/none.pt"], "Give a file, or one of layer, layer-8-heads, stream"),
    "text": (["{text}"], "is not a checkpoint"),
    "text as ONNX": (["{text}.onnx"], "not a whole ONNX model"),
    "dim of a file": (["{model}", "--dim", "8"], "--dim does not go with a file"),
    "mask of an export": (["{model}", "--mask", "none"], "--mask does not go with an exported file"),
    "torch of an export": (["{model}", "--backends", "torch"], "give its checkpoint"),
    "output below nothing": ([*LAYER, "-o", "{tmp}/no/no"], "mkdir -p"),
    "output is a file": ([*LAYER, "-o", "{text}"], "is a file"),
    "unwritable": ([*LAYER, "-o", "/proc/no"], "cannot make"),
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
    assert all(name in printed for name in BACKENDS)
    code = (
        "import sys; from pom_export.cli.main import run; run(['bench', '--help']);"
        "assert not {'torch', 'numpy', 'onnxruntime', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def children(process_id: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_leaves_no_process_and_no_file(number: int, code: int, tmp_path: Path, model: str) -> None:
    """Where the command itself is killed its work folder stays, as nobody is left to remove it; its worker ends."""
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    options = ["--tokens", "64", "--repeats", "100000000", "--no-roofline", "-o", str(output)]
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
    # Long enough for the worker to say that it is to end with its parent.
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
