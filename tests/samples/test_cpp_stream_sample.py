"""The C++ sample that streams: its texts are those of a StreamingSession."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pom_export
from pom_export.runtime.session import import_onnxruntime
from tests.cpp_samples import ROOT, build_sample
from tests.small_models import hybrid
from tests.streaming_graphs import running_sum_model

pytestmark = pytest.mark.slow

DEMO = ROOT / "samples" / "checkpoints" / "byte_lm.safetensors"
GPT = ROOT / "tests" / "data" / "golden" / "gpt_pom" / "checkpoint.pt"
PROMPT = b"The with statement"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (library,) = (Path(import_onnxruntime().__file__).parent / "capi").glob("libonnxruntime.so.*")
    return build_sample(tmp_path_factory.mktemp("cpp"), "generate", f"-DONNXRUNTIME_LIBRARY={library}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "stream.onnx"
    pom_export.export(DEMO, path, stateful=True)
    return path


def run(program: Path, *arguments: str | Path, prompt: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, *arguments], input=prompt, capture_output=True, check=False)


def greedy(model: Path, prompt: Any, count: int, *, kernels: bool = True) -> list[int]:
    """Return the tokens that a StreamingSession continues a prompt with."""
    session = pom_export.StreamingSession(model, kernels=kernels)
    tokens = [int(session.prefill_last(prompt)[0].astype(np.float32).argmax())]
    while len(tokens) < count:
        tokens.append(int(session.step([tokens[-1]])[0].astype(np.float32).argmax()))
    return tokens


@pytest.mark.parametrize("prompt", [b"T", PROMPT, PROMPT * 300], ids=["one byte", "short", "several calls"])
@pytest.mark.parametrize("kernels", [True, False])
def test_the_text_is_pythons(program: Path, demo: Path, prompt: bytes, kernels: bool) -> None:
    library = [pom_export.custom_ops_library()] if kernels else []
    done = run(program, demo, "/dev/stdin", "120", *library, prompt=prompt)
    assert done.returncode == 0, done.stderr
    assert list(done.stdout) == greedy(demo, list(prompt), 120, kernels=kernels)
    said = done.stderr.decode().splitlines()
    assert said[0].startswith(f"prompt: {len(prompt)} tokens, ")
    assert said[1].startswith("text: 120 tokens, ")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_model_by_its_ids(program: Path, tmp_path: Path, dtype: str) -> None:
    """Its mixers are of the first version, its state has other parts, and it has a mask."""
    model = tmp_path / "m.onnx"
    pom_export.export(GPT, model, stateful=True, degree=2, dtype=dtype, mask="padding")
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    text = " ".join(map(str, ids)).encode()
    done = run(program, "--ids", model, "/dev/stdin", "40", pom_export.custom_ops_library(), prompt=text)
    assert done.returncode == 0, done.stderr
    assert list(map(int, done.stdout.split())) == greedy(model, ids, 40)


def refused_models(folder: Path) -> dict[str, Path]:
    pom_export.export(hybrid(vocabulary=256), folder / "hybrid.onnx", stateful=True)
    (folder / "text.onnx").write_text("no model")
    return {
        "which grows with every token": folder / "hybrid.onnx",
        "cannot load": folder / "text.onnx",
        "cannot read": folder,
        "keeps no state": running_sum_model(folder / "plain.onnx", kind=None),
        "is block-causal": running_sum_model(folder / "block.onnx", kind="block-causal"),
        "takes x, but only": running_sum_model(folder / "x.onnx", ids=False),
        "has 61 tokens, which are no bytes": running_sum_model(folder / "words.onnx", vocabulary=61),
        "18 tokens are more than the 17 positions": running_sum_model(folder / "short.onnx", tokens=17),
    }


def test_models_that_do_not_fit_are_refused(program: Path, tmp_path: Path) -> None:
    for said, model in refused_models(tmp_path).items():
        done = run(program, model, "/dev/stdin", "4", pom_export.custom_ops_library(), prompt=PROMPT)
        assert (done.returncode, done.stdout) == (2, b""), said
        assert said in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "prompt", "said"),
    [
        ([], b"", "usage: generate [--ids] MODEL PROMPT TOKENS"),
        (["MODEL", "/dev/stdin", "many"], PROMPT, "many is no number of tokens"),
        (["MODEL", "/dev/stdin", "0"], PROMPT, "0 is no number of tokens"),
        (["MODEL", "/dev/stdin", "4"], b"", "/dev/stdin is empty"),
        (["MODEL", "/none", "4"], b"", "cannot read /none"),
        (["--ids", "MODEL", "/dev/stdin", "4"], b"1 -2", "/dev/stdin has -2, which is no id"),
        (["--ids", "MODEL", "/dev/stdin", "4"], b"1 256", "token 256 is not among the 256"),
        (["MODEL", "/dev/stdin", "4", "/none.so"], PROMPT, "Failed to load library /none.so"),
    ],
)
def test_bad_input_is_named_in_one_line(
    program: Path, tmp_path: Path, arguments: list[str], prompt: bytes, said: str
) -> None:
    model = running_sum_model(tmp_path / "m.onnx")
    done = run(program, *(str(model) if each == "MODEL" else each for each in arguments), prompt=prompt)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_numbers_that_are_not_finite_end_the_text(program: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(running_sum_model(tmp_path / "m.onnx"))
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "W")
    weight.CopyFrom(numpy_helper.from_array(np.full((8, 256), np.nan, np.float32), "W"))
    onnx.save(model, tmp_path / "m.onnx")
    done = run(program, tmp_path / "m.onnx", "/dev/stdin", "4", prompt=PROMPT)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.endswith(b"computed logits that are not finite\n")


def test_a_reader_that_goes_away_is_named(program: Path, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx")
    with Path(os.devnull).open("rb") as closed:  # cannot be written to
        done = subprocess.run(
            [program, model, "/dev/stdin", "4"], input=PROMPT, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.endswith(b"cannot write the text to stdout\n")
