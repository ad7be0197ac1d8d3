"""The plugin class from creation to destruction, over the emulated kernels.

The double of TensorRT (emulation/tensorrt_double.cpp) creates a plugin from fields, clones it, asks it for types,
shapes and formats, configures it, serializes it, makes another from the serialized fields, attaches that to two
contexts, and enqueues; it frees each object as soon as TensorRT may. Then it makes every mistake.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from pom_export import contract
from tests.op_calls import FLOATS, MASKED_MODES, Call, Case
from tests.plugins.cuda.executors import Emulation, assert_matches

SHAPES = [(2, 37, 5), (3, 130, 64), (1, 2500, 24), (1, 1, 8), (3, 0, 8)]
GATED_MODES = ("mean", "causal")


@pytest.fixture(scope="module")
def plugin(emulation: Emulation) -> Emulation:
    return emulation.plugin


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "mask"), MASKED_MODES)
def test_modes_masks_and_types(plugin: Emulation, mode: str, mask: str, dtype: str) -> None:
    cases = [Case(mode, dtype, shape, mask=mask, coefficients=kind) for shape in SHAPES for kind in {"float32", dtype}]
    cases += [] if mask == "none" else [Case(mode, dtype, (3, 65, 8), mask=mask, mask_rows=1)]
    assert_matches(plugin, *map(Call, cases))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", contract.MODES)
def test_forms_and_rotations(plugin: Emulation, mode: str, dtype: str) -> None:
    """Absent inputs are placeholders; tables have a batch axis or none."""
    case = Case(mode, dtype, (2, 66, 48), mask="none" if mode == "features" else "bool")
    rotated = [replace(case, rotation=kind, rotation_rows=rows) for kind in {"float32", dtype} for rows in (None, 1)]
    others = [replace(rotated[0], mask="none", rotary_blocks=2), replace(case, form=contract.PRODUCT)]
    assert_matches(plugin, *map(Call, rotated + others))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", GATED_MODES)
def test_gates(plugin: Emulation, mode: str, dtype: str) -> None:
    case = Case(mode, dtype, (2, 70, 24), mask="same", gate="sigmoid")
    cases = [
        replace(case, gate=activation, gates=gates) for activation in contract.GATE_ACTIVATIONS for gates in (24, 3)
    ]
    cases += [replace(case, bias=dtype, rotation=dtype), replace(case, form=contract.PRODUCT, mask="none")]
    cases += [replace(case, gate_tokens=tokens) for tokens in (1, 99) if mode == "mean"]
    assert_matches(plugin, *map(Call, cases))


@pytest.mark.parametrize("gate", ["none", "sigmoid"])
@pytest.mark.parametrize("mode", GATED_MODES)
def test_states(plugin: Emulation, mode: str, gate: str) -> None:
    """A past of one row, whose length looks like a placeholder, and of several; with absent inputs before it."""
    case = Case(mode, "float16", (3, 70, 24), gate=gate, past=7)
    cases = [replace(case, shape=shape, mask=mask) for shape in [(1, 1, 8), (3, 300, 24)] for mask in ("none", "bool")]
    cases += [replace(case, rotation="float32"), replace(case, form=contract.PRODUCT, mask="ragged")]
    cases += [replace(case, shape=(batch, 0, 8)) for batch in (0, 2)]
    assert_matches(plugin, *map(Call, cases))


@pytest.mark.parametrize("shape", [(1, 40000, 4), (7, 700, 136), (0, 5, 8)], ids=str)
@pytest.mark.parametrize("mode", GATED_MODES)
def test_workspaces_of_larger_shapes(plugin: Emulation, mode: str, shape: tuple[int, int, int]) -> None:
    """Every call also runs in an engine built for three times its batch and tokens."""
    assert_matches(plugin, Call(Case(mode, "float16", shape, mask="bool")))


ALLOCATING = {
    *("createPlugin", "clone", "configurePlugin", "getWorkspaceSize", "attachToContext", "onShapeChange"),
}


@pytest.mark.parametrize(("gate", "past"), [("none", None), ("sigmoid", None), ("sigmoid", 3)])
@pytest.mark.parametrize("mode", GATED_MODES)
def test_a_failure_is_reported_and_nothing_leaks(plugin: Emulation, mode: str, gate: str, past: int | None) -> None:
    """Each allocation in the plugin's functions fails in turn, then each CUDA call."""
    case = Case(mode, shape=(2, 2500, 8), mask="bool", gate=gate, rotation="float32", past=past)
    lines = plugin.send(Call(case), option="--faults").decode().splitlines()

    said: dict[str, Counter[str]] = {"allocation": Counter(), "cuda": Counter()}
    op = contract.OP_NAME if gate == "none" else contract.GATED_OP_NAME
    for line in lines:
        place, log = line.split(": ", 1)
        kind, entry = place.split()
        said[kind][entry] += 1
        reason = {"allocation": "std::bad_alloc", "cuda": "cudaErrorLaunchOutOfResources"}[kind]
        assert log.startswith(f"{op}: "), line
        assert reason in log, line
    assert set(said["allocation"]) >= ALLOCATING
    # Sums, means and the gate; a memset and the chain.
    assert said["cuda"] == {"enqueue": 2 + (mode == "mean" and gate != "none")}


@pytest.mark.parametrize(
    ("case", "calls"),
    [
        (Case("causal", shape=(2, 1, 8), mask="bool", gate="sigmoid", past=5), 1),
        (Case("mean", shape=(2, 1, 8), past=5), 1),
        (Case("causal", shape=(2, 0, 8), past=5), 2),  # copies
    ],
    ids=str,
)
def test_a_state_of_one_token_more_is_one_launch(plugin: Emulation, case: Case, calls: int) -> None:
    lines = plugin.send(Call(case), option="--faults").decode().splitlines()

    assert sum(line.startswith("cuda enqueue: ") for line in lines) == calls


REFUSED = {
    "create without fields": "the attributes are a null pointer",
    "create of fields that are null": "the attributes are a null pointer",
    "create of an unknown field": 'unknown attribute "power"',
    "create of a field without a name": 'unknown attribute ""',
    "create of a number without data": "degree must be one int32",
    "create of a state twice": "stateful must be 0 or 1, got 2",
    "create of two degrees": "degree must be one int32, got a field of type 5 and length 2",
    "create of a degree that is a float": "degree must be one int32, got a field of type 1 and length 1",
    "create of an epsilon that is an integer": "epsilon must be one float32, got a field of type 5 and length 1",
    "create of a field twice": "the attribute mode is there twice",
    "create of a mode of two lines": 'got "mean?!"',
    "create of a negative length": "mode must be text, got a field of type 6 and length -1",
    "configure without inputs": "the inputs are a null pointer",
    "configure with one input": "takes 2 to 7 inputs, got 1",
    "configure of an unknown rank": "input 0 has -1 dimensions",
    "configure of nine dimensions": "input 0 has 9 dimensions",
    "configure of x with two dimensions": "x must be (batch, tokens, channels)",
    "configure of other channels": "coefficients must be (4, degree)",
    "configure of int64": "x must be float32, float16 or bfloat16, got int64",
    "configure without a length": "past_length is missing, which stateful 1 needs",
    "configure of a state of other channels": "past_state must be (2, 2, 4) for x's batch and channels",
    "configure of a state of another batch": "past_length must be (2) for x's batch and channels",
    "configure of a state where there is none": "past_state and past_length go with stateful 1",
    "workspace of other channels": "coefficients must be (4, degree)",
    "workspace of more tokens than 32 bits count": "the CUDA kernels take at most 2147482623 tokens",
    "output types of nothing": "needs 1 outputs, got a null pointer",
    "a format without tensors": "",
    "a format before the first": "",
    "a format behind the last": "",
    "a format that is not linear": "",
    "x of bool": "",
    "an output of another type": "",
    "a state of halves": "",
    "a length of int32": "",
    "a present length of floats": "",
    "shapes without inputs": "the inputs are a null pointer",
    "a negative batch": "got (-1, 5, 4)",
    "a mask of other tokens": "mask must be (1 or 2, 5)",
    "more elements than there are": "x is too large",
    "enqueue before shapes": "no shapes were set, or they were refused",
    "enqueue after refused shapes": "no shapes were set, or they were refused",
    "enqueue without inputs": "the inputs are a null pointer",
    "enqueue without outputs": "needs 1 outputs, got a null pointer",
    "enqueue of a null x": "x is a null pointer",
    "enqueue of null coefficients": "coefficients is a null pointer",
    "enqueue of a null mask": "mask is a null pointer",
    "enqueue to a null output": "the output is a null pointer",
    "enqueue of a null past": "past_state is a null pointer",
    "enqueue to a null present": "present_length is a null pointer",
    "enqueue of the present over the past": "the present must not be written over the past",
    "enqueue with a workspace off its alignment": "the workspace is not aligned to 16 bytes",
    "enqueue with a null workspace": "the workspace is a null pointer",
}


def test_misuse_is_refused_with_a_reason(plugin: Emulation) -> None:
    said = dict(line.split(": ", 1) for line in plugin.send(option="--misuse").decode().splitlines())

    assert set(said) == set(REFUSED)
    for name, reason in REFUSED.items():
        assert reason in said[name], (name, said[name])
        assert bool(said[name]) == bool(reason), name
