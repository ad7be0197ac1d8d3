"""Files with several kinds of aggregation, in the oldest ONNX Runtime that the project allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export import contract
from pom_export.graph.nodes import op_of
from pom_export.mixer import PolynomialMixer, RotaryPolynomialMixer
from tests.oldest_onnxruntime import oldest_version, run_python

pytestmark = pytest.mark.slow

# Prints the largest error of each way to run a file, or the error that refuses it.
SCRIPT = """
import sys
import numpy as np
import onnxruntime
import pom_export
from pom_export.errors import InputError

model, kernels = sys.argv[1], sys.argv[2] == "kernels"
data = np.load(f"{model}.npz")
feed = {name: data[name] for name in ("x", "keep")}
print(onnxruntime.__version__)
try:
    (y,) = pom_export.inference_session(model, kernels=kernels).run(None, feed)
except InputError as error:
    print(error)
else:
    print(abs(y - data["y"]).max())
"""


class Kinds(nn.Module):
    """Mixers whose functions all differ: in mode, mask, degree, heads, rotation, and whether they are gated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixers = nn.ModuleList(PolynomialMixer(16, degree, 2) for degree in (3, 3, 2, 3))
        self.heads = PolynomialMixer(16, 2, 2, n_sel_heads=4)
        self.rotary = RotaryPolynomialMixer(16, 2, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        one, two, three, four = self.mixers
        x = x + one(x) + two(x, mask="causal")
        x = x + three(x, mask="causal") + four(x, mask=keep)
        return x + self.heads(x, mask="causal") + self.rotary(x)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinds") / "m.onnx"
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
    keep = torch.arange(7) < torch.tensor([[7], [4]])
    pom_export.export(Kinds(), path, example_inputs=(x, keep))
    with torch.no_grad():
        y = Kinds().double()(x.double(), keep)
    np.savez(f"{path}.npz", x=x.numpy(), keep=keep.numpy(), y=y.numpy())
    return path


@pytest.fixture(scope="module")
def overloaded(model: Path) -> Path:
    """The same, as earlier versions wrote it: all functions of an op have the op's name, and different overloads."""
    path = model.with_name("overloaded.onnx")
    proto = onnx.load(model)
    for function in proto.functions:
        function.overload = "" if function.name in {contract.OP_NAME, contract.GATED_OP_NAME} else function.name
        function.name = function.name.rpartition("_")[0] or function.name
    for node in proto.graph.node:
        if (op := op_of(node)) is not None:
            node.overload, node.op_type = "" if node.op_type == op else node.op_type, op
    proto.ir_version = 10
    onnx.save(proto, path)
    Path(f"{path}.npz").write_bytes(Path(f"{model}.npz").read_bytes())
    return path


def run(model: Path, way: str) -> str:
    done = run_python("-c", SCRIPT, str(model), way)
    assert done.returncode == 0, done.stderr
    version, result = done.stdout.splitlines()
    assert version == oldest_version()
    return result


def test_the_file_has_functions_of_different_names(model: Path) -> None:
    functions = onnx.load(model).functions
    assert len(functions) >= 5
    assert len({(function.domain, function.name) for function in functions}) == len(functions)


@pytest.mark.parametrize("way", ["kernels", "functions"])
def test_each_node_gets_its_own_body(model: Path, way: str) -> None:
    assert float(run(model, way)) < 1e-4


def test_kernels_run_a_file_of_an_earlier_version(overloaded: Path) -> None:
    assert float(run(overloaded, "kernels")) < 1e-4


def test_one_function_for_all_is_refused(overloaded: Path) -> None:
    refused = run(overloaded, "functions")
    assert f"ONNX Runtime {oldest_version()} would use one of them for all" in refused
    assert "Export it again" in refused
