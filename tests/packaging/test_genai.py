"""`package --for genai`: the model's new interface, the tokenizer's files, and what is refused.

onnxruntime-genai itself runs packages in test_genai_runtime.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pom_export
from pom_export.errors import InputError
from pom_export.graph.exported_model import read_model
from pom_export.packaging.genai.checking import Emulation
from pom_export.packaging.genai.layout import layout_of
from pom_export.packaging.genai.rewriting import SKIPPED, UNKNOWN
from tests.streaming_graphs import running_sum_model

WORDS = 11


def packaged(model: Path, **options: Any) -> Path:
    pom_export.package(model, model.parent / "package", target="genai", **options)
    return model.parent / "package"


def emulated(model: Path, rows: int) -> Emulation:
    folder = packaged(model) if not (model.parent / "package").exists() else model.parent / "package"
    return Emulation(folder / "model.onnx", layout_of(read_model(model)), rows)


def logits_of(model: Path, ids: list[int]) -> np.ndarray:
    """Return W (sum of all tokens), which is in whole numbers, and -inf for padding."""
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in onnx.load(model).graph.initializer}
    return np.append(weights["table"][ids].sum(0) @ weights["W"], -np.inf)


def test_the_state_is_carried_in_shared_memory(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS)
    emulation = emulated(model, rows=1)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    for start, stop in ((0, 4), (4, 5), (5, 8)):
        made = emulation.infer(np.array([text[start:stop]]), np.arange(start, stop)[None])
        assert made.tolist() == [logits_of(model, text[:stop]).tolist()]
    # A text that begins anew there, with the memory as it is.
    made = emulation.infer(np.array([[7, 7]]), np.array([[0, 1]]))
    assert made.tolist() == [logits_of(model, [7, 7]).tolist()]


def test_a_token_that_was_left_out_is_an_error(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS)
    emulation = emulated(model, rows=1)
    emulation.infer(np.array([[3, 1]]), np.array([[0, 1]]))
    with pytest.raises(InputError, match=SKIPPED):
        emulation.infer(np.array([[4]]), np.array([[3]]))


def test_padding_is_masked_where_the_model_has_a_mask(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS, mask=True)
    emulation = emulated(model, rows=2)
    pad = WORDS
    made = emulation.infer(np.array([[3, 1, 4], [1, pad, pad]]), np.array([[0, 1, 2], [0, 0, 0]]))
    assert made.tolist() == [logits_of(model, ids).tolist() for ids in ([3, 1, 4], [1])]
    # The second text ends, and goes on with padding.
    made = emulation.infer(np.array([[5], [pad]]), np.array([[3], [1]]))
    made = emulation.infer(np.array([[9], [pad]]), np.array([[4], [2]]))
    assert made[0].tolist() == logits_of(model, [3, 1, 4, 5, 9]).tolist()


@pytest.mark.parametrize("token", [WORDS, -1])
def test_padding_is_an_error_where_the_model_has_no_mask(token: int, tmp_path: Path) -> None:
    emulation = emulated(running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS), rows=2)
    with pytest.raises(InputError, match=UNKNOWN):
        emulation.infer(np.array([[3, 1], [1, token]]), np.array([[0, 1], [0, 0]]))


def test_a_state_is_read_once_and_before_it_is_written(tmp_path: Path) -> None:
    """Its input and output share memory: whatever ONNX Runtime's order, the only reader precedes the writer."""
    folder = packaged(running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS))
    graph = onnx.load(folder / "model.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}

    def before(name: str) -> set[str]:
        seen, left = set(), [name]
        while left:
            node = makers.get(left.pop())
            if node is not None and node.name not in seen:
                seen.add(node.name)
                left += node.input
        return seen

    names = ["past_key_values.0.conv_state", "past_key_values.0.recurrent_state"]
    unused = ["past_key_values.1.key", "past_key_values.1.value"]
    assert [value.name for value in graph.input] == ["input_ids", "position_ids", *names, *unused]
    presents = [name.replace("past_key_values", "present") for name in (*names, *unused)]
    assert [value.name for value in graph.output] == ["logits", *presents]
    for past in names:
        (reader,) = (node for node in graph.node if past in node.input)
        assert reader.op_type == "Where"  # whose output never shares its input's memory
        assert reader.name in before(past.replace("past_key_values", "present"))


def test_a_prompt_does_not_take_the_logits_of_all_its_tokens(tmp_path: Path) -> None:
    folder = packaged(running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS))
    graph = onnx.load(folder / "model.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    product = makers[makers["logits"].input[0]]
    assert product.op_type == "MatMul"
    assert makers[product.input[0]].name == "genai/last_vectors_of_rows"


def test_a_package_has_what_the_runtime_reads(tmp_path: Path) -> None:
    folder = packaged(running_sum_model(tmp_path / "m.onnx", tokens=50))
    config = json.loads((folder / "genai_config.json").read_text())
    model = config["model"]
    assert (model["vocab_size"], model["pad_token_id"], model["eos_token_id"]) == (257, 256, [256])
    assert (model["context_length"], config["search"]["max_length"]) == (50, 50)
    assert "custom_ops_library" not in model["decoder"]["session_options"]  # it has no aggregations
    assert not list(folder.glob("*.so"))


def test_the_byte_tokenizer_gives_bytes(tmp_path: Path) -> None:
    import tokenizers

    folder = packaged(running_sum_model(tmp_path / "m.onnx"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    every = "".join(map(chr, [*range(0x800), 0x2014, 0xFFFD, 0x10FFFF, 0x1F600]))
    assert tokenizer.encode(every).ids == list(every.encode())
    assert tokenizer.decode(list(every.encode())) == every


def test_a_tokenizer_comes_with_what_is_beside_it(tmp_path: Path) -> None:
    beside = tmp_path / "tokenizer"
    beside.mkdir()
    words = {f"w{index}": index for index in range(WORDS)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    (beside / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    graph = running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS)
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not beside"):
        packaged(graph, tokenizer=str(beside / "tokenizer.json"))
    (beside / "tokenizer_config.json").write_text('{"eos_token": "w4", "bos_token": {"content": "w2"}}')
    folder = packaged(graph, tokenizer=str(beside / "tokenizer.json"))
    config = json.loads((folder / "genai_config.json").read_text())["model"]
    assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == ([4], 2, WORDS)
    assert (folder / "tokenizer_config.json").read_bytes() == (beside / "tokenizer_config.json").read_bytes()
    with pytest.raises(InputError, match=f"has {WORDS} tokens, but small.onnx has 5"):
        packaged(
            running_sum_model(tmp_path / "small.onnx", vocabulary=5),
            tokenizer=str(beside / "tokenizer.json"),
            force=True,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": None}, "keeps no state"),
        ({"ids": False}, "it takes vectors"),
        ({"positions": True}, "it has the input positions"),
        ({"kind": "block-causal"}, "it is block-causal"),
        ({"attention": True}, r"it has past_key_values\.0\.key, but not past_key_values\.0\.value"),
    ],
)
def test_models_that_do_not_fit_are_refused_and_leave_nothing(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = running_sum_model(tmp_path / "m.onnx", **options)
    with pytest.raises(InputError, match=message):
        packaged(model)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_preflight_says_what_is_missing(tmp_path: Path) -> None:
    folder = packaged(running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS))

    def preflight() -> list[str]:
        command = [sys.executable, str(folder / "preflight.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr.splitlines()

    (line,) = preflight()
    assert line.startswith("preflight: onnxruntime-genai cannot be imported")
    assert "pip install" in line
    (folder / "genai_config.json").write_text("{}")
    assert preflight() == ["preflight: genai_config.json was changed: its SHA-256 is not the manifest's"]
