"""Which functions a program may call, and with which arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pom_export.checkpoint.programs.checks import MalformedError, UnsafeError
from pom_export.checkpoint.programs.operators import _ATEN, _IN_PLACE, check_call

X = {"as_tensor": {"name": "x"}}


def aten(name: str) -> str:
    return f"torch.ops.aten.{name}"


def test_every_name_on_the_list_is_an_operator() -> None:
    assert [name for name in sorted(_ATEN | _IN_PLACE) if not hasattr(torch.ops.aten, name)] == []


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (aten("relu.default"), {"self": X}),
        (aten("relu_.default"), {"self": X}),
        (aten("add.Tensor"), {"self": X, "other": {"as_int": 2}}),
        (aten("masked_fill_.Scalar"), {"self": X, "mask": X, "value": {"as_float": -1.0}}),
        (aten("gelu.default"), {"self": X, "approximate": {"as_string": "tanh"}}),
        (aten("sum.dim_IntList"), {"self": X, "dim": {"as_ints": []}, "dtype": {"as_none": True}}),
        (aten("cat.default"), {"tensors": {"as_tensors": [{"name": "x"}]}}),
        (aten("sym_size.int"), {"self": X, "dim": {"as_int": 0}}),
        ("torch.ops.pom.polynomial_aggregation.default", {"x": X, "coefficients": X, "mask": {"as_none": True}}),
        ("_operator.add", {"": {"as_int": 1}}),
        ("torch.sym_max", {"": {"as_int": 1}}),
    ],
)
def test_what_computes_may_be_called(target: str, arguments: dict[str, Any]) -> None:
    check_call(target, arguments)


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (aten("from_file.default"), {"filename": {"as_string": "precious"}, "shared": {"as_bool": True}}),
        (aten("set_.source_Tensor"), {"self": X, "source": X}),
        (aten("resize_.default"), {"self": X, "size": {"as_ints": [9]}}),
        (aten("_print.default"), {"s": {"as_string": "forged"}}),
        (aten("rand.default"), {"size": {"as_ints": [2]}}),
        (aten("empty.memory_format"), {"size": {"as_ints": [2]}}),
        (aten("native_batch_norm.default"), {"input": X}),
        (aten("add.out"), {"self": X, "other": X, "out": X}),
        (aten("mul.left_t"), {"l": {"as_ints": [0]}, "n": {"as_int": 10**12}}),
        (aten("pow.Scalar_Scalar"), {"self": {"as_int": 9}, "exponent": {"as_int": 10**9}}),
        (aten("add.str"), {"a": {"as_string": "x"}, "b": {"as_string": "y"}}),
        (aten("relu.default.__globals__"), {"self": X}),
        (aten("relu"), {"self": X}),
        ("torch.ops.aten.relu.default.decompose", {"self": X}),
        ("torch.ops.load_library", {"path": {"as_string": "evil.so"}}),
        ("torch.ops.prims.device_put.default", {"a": X}),
        ("torch.ops.quantized.linear.default", {}),
        ("torch.ops.higher_order.cond", {}),
        ("torch.hub.os.system", {"": {"as_string": "true"}}),
        ("torch.sym_sqrt", {"": {"as_int": 1}}),
        ("torch.load", {"": {"as_string": "evil"}}),
        ("_operator.methodcaller", {"": {"as_string": "x"}}),
        ("_operator.lshift", {"": {"as_int": 1}}),
        ("math.factorial", {"": {"as_int": 10**9}}),
        ("#evil:op", {}),
        ("builtins.exec", {}),
        ("", {}),
        (aten("relu.default"), {"self": {"as_graph": {}}}),
    ],
)
def test_anything_else_is_refused(target: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UnsafeError):
        check_call(target, arguments)


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (aten("relu.missing"), {"self": X}),
        (aten("relu.default"), {"other": X}),
        (aten("relu.default"), {"self": {"as_tensors": []}}),
        # torch accepts any number as a dtype, and reads beyond its tables.
        (aten("sum.default"), {"self": X, "dtype": {"as_int": 10**9}}),
        (aten("view.dtype"), {"self": X, "dtype": {"as_int": 100}}),
        (aten("to.prim_dtype"), {"self": X, "dtype": {"as_int": -7}}),
        (aten("reshape.default"), {"self": X, "shape": {"as_floats": [1.0]}}),
        ("torch.ops.pom.polynomial_subtraction.default", {"x": X}),
        ("torch.ops.higher_order.wrap_with_autocast", {"0": {"as_string": "cpu"}}),
    ],
)
def test_calls_that_torch_never_writes_are_refused(target: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        check_call(target, arguments)
