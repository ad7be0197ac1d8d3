"""Packages in the real server: numbers over each of its protocols, batches, errors, and the environment's NumPy."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pom_export
from pom_export.graph.exported_model import read_model
from pom_export.mixer import PolynomialMixer
from pom_export.packaging.triton.states import carried_states
from pom_export.parity.tolerances import MODELS
from tests.packaging.test_batches import write_table_model
from tests.small_models import VOCABULARY, hybrid
from tests.triton_server import NotReadyError, Server, client, environment, serving

pytestmark = [pytest.mark.slow]
CHECKPOINT = Path(__file__).parents[2] / "samples" / "checkpoints" / "byte_lm.safetensors"
PROGRAM = str(Path(__file__).with_name("triton_client.py"))
TOLERANCE = MODELS["float32"]
IDS = np.random.default_rng(5).integers(0, 256, (4, 60))
# Where each sequence is cut: in the server, pieces of all lengths meet.
CUTS = ((0, 7, 8, 9, 60), (0, 1, 2, 40, 60), (0, 50, 51, 59, 60), (0, 20, 40, 41, 60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One repository: the demo's stream, a hybrid's, a mixer, and a model with tensors of the batch alone."""
    folder = tmp_path_factory.mktemp("triton")
    environment(folder / "env")
    pom_export.export(CHECKPOINT, folder / "stream.onnx", stateful=True)
    pom_export.export(hybrid(), folder / "hybrid.onnx", stateful=True)
    torch.manual_seed(0)
    mixer = PolynomialMixer(16, 2, 2).eval()
    torch.save(mixer, folder / "mixer.pt")
    pom_export.export(mixer, folder / "mixer.onnx", mask="padding")
    write_table_model(folder / "table.onnx")
    (folder / "models").mkdir()
    for name in ("stream", "hybrid", "mixer", "table"):
        pom_export.package(folder / f"{name}.onnx", folder / name, target="triton")
        (folder / name / "models" / name).rename(folder / "models" / name)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder / "models", folder) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> Any:
    """The logits (4, 60, 256) of one pass in PyTorch."""
    with torch.no_grad():
        return pom_export.load_checkpoint(CHECKPOINT).eval()(torch.from_numpy(IDS)).numpy()


def send(
    server: Server, protocol: str, folder: Path, requests: list[dict[str, Any]], output: str = "logits",
    model: str = "stream",
) -> Any:  # fmt: skip
    plan = {"model": model, "input": "input_ids", "output": output, "requests": requests}
    (folder / "plan.json").write_text(json.dumps(plan))
    port = server.http if protocol == "http" else server.grpc
    done = client(PROGRAM, protocol, str(port), str(folder / "plan.json"), str(folder / "answers.json"))
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answers.json").read_text())


def pieces(first: int, ids: Any = IDS) -> list[dict[str, Any]]:
    """Return the requests of the four sequences in turns, with numbers from `first`."""
    return [
        {
            "sequence": first + row,
            "tokens": ids[row, CUTS[row][turn] : CUTS[row][turn + 1]].tolist(),
            "start": turn == 0,
            "end": turn == len(CUTS[row]) - 2,
        }
        for turn in range(len(CUTS[0]) - 1)
        for row in range(len(CUTS))
    ]


def check(answers: list[Any], expected: Any) -> None:
    for row in range(len(CUTS)):
        got = np.concatenate([np.array(answer) for answer in answers[row :: len(CUTS)]])
        assert got.shape == expected[row].shape
        bound = TOLERANCE.absolute + TOLERANCE.relative * np.abs(expected).max()
        assert np.abs(got - expected[row]).max() <= bound


@pytest.mark.parametrize(("protocol", "first"), [("http", 100), ("grpc", 200), ("stream", 300)])
def test_interleaved_sequences_in_uneven_pieces(
    protocol: str, first: int, server: Server, expected: Any, tmp_path: Path
) -> None:
    check(send(server, protocol, tmp_path, pieces(first)), expected)


def test_a_hybrid_whose_state_grows(server: Server, tmp_path: Path) -> None:
    ids = IDS % VOCABULARY
    with torch.no_grad():
        expected = hybrid()(torch.from_numpy(ids)).numpy()
    check(send(server, "stream", tmp_path, pieces(650, ids), model="hybrid"), expected)


def test_pieces_of_all_lengths_meet_in_one_call(server: Server, tmp_path: Path) -> None:
    """While the model reads a long prompt, the others wait, and are then read together."""
    prompts = [IDS.ravel().tolist() * 20, *(IDS[0, :length].tolist() for length in range(2, 10))]
    requests = [
        {"sequence": 700 + place, "tokens": prompt, "start": True, "end": True} for place, prompt in enumerate(prompts)
    ]
    send(server, "stream", tmp_path, requests, "logits_last")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http}/v2/models/stream/stats", timeout=30) as answer:
        (stats,) = json.load(answer)["model_stats"]
    assert max(int(each["batch_size"]) for each in stats["batch_stats"]) > 1
    assert int(stats["execution_count"]) < int(stats["inference_count"])


def test_the_last_output_alone_and_a_start_on_a_used_id(server: Server, expected: Any, tmp_path: Path) -> None:
    begun = {"sequence": 400, "tokens": IDS[0].tolist(), "start": True, "end": False}
    anew = {"sequence": 400, "tokens": IDS[1].tolist(), "start": True, "end": True}
    answers = send(server, "grpc", tmp_path, [begun, anew], "logits_last")
    np.testing.assert_allclose(answers, expected[:2, -1], rtol=0, atol=TOLERANCE.relative * np.abs(expected).max())


def test_an_error_is_that_of_its_request(server: Server, expected: Any, tmp_path: Path) -> None:
    requests = pieces(500)
    faulty = {"sequence": 600, "tokens": [1, 300], "start": True, "end": False}
    after = {"sequence": 600, "tokens": [1], "start": False, "end": True}
    unknown = {"sequence": 601, "tokens": [1], "start": False, "end": False}
    answers = send(server, "grpc", tmp_path, [*requests, faulty, after, unknown])
    check(answers[: len(requests)], expected)
    wrong, ended, never = answers[len(requests) :]
    assert "input_ids holds 300, beyond the model's 256 values" in wrong
    assert "sequence 600 is not open" in ended
    assert "must specify the START flag" in never


def test_the_packages_own_client(server: Server, folder: Path, expected: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", input_ids=IDS[:1])
    program = [str(folder / "stream" / "client.py"), "--url", f"127.0.0.1:{server.grpc}", "--tokens", "7"]
    done = client(*program, str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("logits: float32 [1, 60, 256]")
    with np.load(tmp_path / "out.npz") as outputs:
        check([outputs["logits"][0], *[expected[row] for row in (1, 2, 3)]], expected)
    assert client(*program).stdout.startswith("logits: float32 [1, 8, 256]")
    for arrays, message in (
        ({"input_ids": np.full((1, 9), 300)}, "answers: input_ids holds 300, beyond the model's 256 values"),
        ({"input_ids": np.zeros((1, 0), np.int64)}, "input_ids [1, 0], but the model takes input_ids, not empty"),
        ({"ids": IDS[:1]}, "holds ids [1, 60], but the model takes input_ids"),
    ):
        np.savez(tmp_path / "in.npz", **arrays)
        refused = client(*program, str(tmp_path / "in.npz"))
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
        assert message in refused.stderr


def test_the_request_of_the_readme(server: Server, folder: Path) -> None:
    text = (folder / "stream" / "README.md").read_text()
    command = re.search(r"curl localhost:8000(/v2/models/stream/infer) -d '(.*)'", text)
    assert command is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http}{command[1]}", command[2].encode(), 30) as answer:
        outputs = {each["name"]: each for each in json.load(answer)["outputs"]}
    assert outputs["logits"]["shape"] == [1, 2, 256]
    assert outputs["logits_last"]["data"] == outputs["logits"]["data"][256:]


def test_a_model_without_a_state(server: Server, folder: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 9, 16)).astype(np.float32)
    mask = np.arange(9) < np.array([[9], [4], [1]])
    np.savez(tmp_path / "in.npz", x=x, mask=mask)
    program = [str(folder / "mixer" / "client.py"), "--url", f"127.0.0.1:{server.grpc}"]
    done = client(*program, str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz"))
    assert done.returncode == 0, done.stderr
    (expected,) = pom_export.inference_session(folder / "mixer.onnx").run(None, {"x": x, "mask": mask})
    with np.load(tmp_path / "out.npz") as outputs:
        np.testing.assert_allclose(outputs["y"], expected, rtol=0, atol=TOLERANCE.relative * np.abs(expected).max())
    np.savez(tmp_path / "in.npz", x=np.full_like(x, np.nan), mask=mask)
    refused = client(*program, str(tmp_path / "in.npz"))
    assert refused.returncode != 0
    assert "x holds a number that is not finite" in refused.stderr


def test_tensors_of_the_batch_alone(server: Server, folder: Path, tmp_path: Path) -> None:
    """The server has none: requests give them another axis, which the model does not see."""
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    np.savez(tmp_path / "in.npz", x=x, ids=np.array([[1], [3]]))
    program = [str(folder / "table" / "client.py"), "--url", f"127.0.0.1:{server.grpc}"]
    assert client(*program, str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")).returncode == 0
    with np.load(tmp_path / "out.npz") as outputs:
        np.testing.assert_array_equal(outputs["y"], x + 1)
        np.testing.assert_array_equal(outputs["entries"], [[1.0], [3.0]])


def test_preflight_in_the_environment(folder: Path, tmp_path: Path) -> None:
    pom_export.package(folder / "stream.onnx", tmp_path / "stream", target="triton")
    command = [folder / "env" / "bin" / "python", tmp_path / "stream" / "preflight.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"triton: ok, NumPy 1\.26", done.stdout)
    assert "files as packaged, and nothing wrong here" in done.stdout


def test_numpy_2_is_refused_when_the_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    """With it, this server repeats the first element of every input, and says nothing."""
    pom_export.package(folder / "stream.onnx", tmp_path / "stream", target="triton")
    environment(tmp_path / "stream" / "env", numpy="2")
    with pytest.raises(NotReadyError) as caught, serving(tmp_path / "stream" / "models", tmp_path):
        pytest.fail("it was served")
    assert "exchanges wrong numbers with this server" in str(caught.value)
    assert "pip install 'numpy<2'" in str(caught.value)


def test_sequences_that_a_client_leaves_open_do_not_fill_the_pool(folder: Path, expected: Any, tmp_path: Path) -> None:
    """The server drops them when they have been idle, and tells the model nothing."""
    pom_export.package(folder / "stream.onnx", tmp_path / "stream", target="triton")
    (tmp_path / "stream" / "env").symlink_to(folder / "env")
    config = tmp_path / "stream" / "models" / "stream" / "config.pbtxt"
    text = re.sub(r"max_candidate_sequences: \d+", "max_candidate_sequences: 2", config.read_text())
    config.write_text(re.sub(r"idle_microseconds: \d+", "idle_microseconds: 300000", text))
    with serving(tmp_path / "stream" / "models", tmp_path) as server:
        for turn in range(3):
            opened = [
                {"sequence": 10 * turn + row + 1, "tokens": IDS[row].tolist(), "start": True, "end": False}
                for row in range(2)
            ]
            check([*send(server, "grpc", tmp_path, opened), *expected[2:]], expected)
        late = {"sequence": 1, "tokens": [1], "start": False, "end": False}
        assert "must specify the START flag" in send(server, "grpc", tmp_path, [late])[0]


def test_the_servers_parser_takes_the_configuration_of_the_onnxruntime_backend(folder: Path, tmp_path: Path) -> None:
    """The server here lacks that backend: nothing else is wrong."""
    pom_export.package(folder / "stream.onnx", tmp_path / "stream", target="triton", backend="onnxruntime")
    with pytest.raises(NotReadyError) as caught, serving(tmp_path / "stream" / "models", tmp_path):
        pytest.fail("it was served")
    assert "unable to find backend library for backend 'onnxruntime'" in str(caught.value)
    assert "Error parsing" not in str(caught.value)
    config = tmp_path / "stream" / "models" / "stream" / "config.pbtxt"
    config.write_text(config.read_text().replace("zero_data", "zero_datum"))
    with pytest.raises(NotReadyError) as caught, serving(tmp_path / "stream" / "models", tmp_path):
        pytest.fail("it was served")
    assert "Error parsing text-format inference.ModelConfig" in str(caught.value)


# In the Python backend, the server gives a model the state of a sequence's start in every call.
STATES_PROBE = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            arrays = {each.name(): each.as_numpy() for each in request.inputs()}
            seen = {name: [array.dtype.name, list(array.shape), float(array.sum())] for name, array in arrays.items()}
            print("SEEN", json.dumps(seen), flush=True)
        logits = [np.zeros((1, r.inputs()[0].as_numpy().size, 256), np.float32) for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("logits", each)]) for each in logits]
"""


def test_the_server_starts_sequences_with_the_state_of_the_configuration(folder: Path, tmp_path: Path) -> None:
    pom_export.package(folder / "stream.onnx", tmp_path / "stream", target="triton", backend="onnxruntime")
    served = tmp_path / "stream" / "models" / "stream"
    python = f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{folder / "env"}" }} }}\n'
    config = (served / "config.pbtxt").read_text().replace('"onnxruntime"', '"python"')
    (served / "config.pbtxt").write_text(config + python)
    (served / "1" / "model.py").write_text(STATES_PROBE)
    with serving(tmp_path / "stream" / "models", tmp_path) as server:
        assert client(str(tmp_path / "stream" / "client.py"), "--url", f"127.0.0.1:{server.grpc}").returncode == 0
        log = server.log.read_text()
    seen = json.loads(next(line for line in log.splitlines() if line.startswith("SEEN")).removeprefix("SEEN"))
    assert seen.pop("input_ids") == ["int64", [1, 3], 3.0]
    states = carried_states(read_model(served / "1" / "model.onnx"))
    assert seen == {part.spec.name: [part.spec.dtype.name, [1, *part.spec.axes[1:]], 0.0] for part in states}
