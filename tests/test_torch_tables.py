"""What is kept of torch's exporter is what torch would make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import exported_program
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

LAYOUTS = {
    "plain": torch.ones(3, 4, 5),
    "transposed": torch.ones(3, 4, 5).mT,
    "a slice, permuted": torch.ones(3, 4, 6, 5)[:, :, ::2].permute(3, 0, 1, 2),
}
ATEN = torch.ops.aten


def symbolic(mode: FakeTensorMode, x: Tensor) -> Tensor:
    fake = mode.from_tensor(x, symbolic_context=StatelessSymbolicContext([DimDynamic.DYNAMIC] * x.dim()))
    assert isinstance(fake.shape[0], torch.SymInt)
    return fake


def layout(x: Tensor) -> tuple[object, ...]:
    return x.dtype, x.shape, x.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("name", LAYOUTS)
def test_shapes_are_those_of_the_decompositions(name: str, dtype: torch.dtype) -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    x = symbolic(mode, LAYOUTS[name].to(dtype))
    unary = (ATEN.tril.default, ATEN.triu.default, *(() if dtype == torch.bool else (ATEN.hardsigmoid.default,)))
    for operator in unary:
        with mode:
            assert layout(operator(x)) == layout(decomposition_table[operator](x)), operator


def test_operators_have_their_own_kernels_after_each_decomposition() -> None:
    linear = torch.ops.aten.linear.default
    before = dict(linear.py_kernels)
    seen = []
    for _ in range(3):
        with exported_program._override_composite_implicit_decomp({linear: linear.decompose}):
            seen.append(dict(linear.py_kernels))
        assert linear.py_kernels == before
    assert len(seen[0]) > len(before)
    assert seen[1:] == seen[:1] * 2
