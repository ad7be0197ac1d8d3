"""What is kept of torch's exporter is what torch would make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import exported_program
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

HARDSIGMOID = torch.ops.aten.hardsigmoid.default


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "x", [torch.ones(3, 4, 5), torch.ones(3, 4, 5).mT, torch.ones(3, 4, 6, 5)[:, :, ::2].permute(3, 0, 1, 2)]
)
def test_a_gates_activation_is_shaped_as_its_decomposition_is(x: Tensor, dtype: torch.dtype) -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC] * x.dim())
    fake = mode.from_tensor(x.to(dtype), symbolic_context=context)
    with mode:
        found, wanted = HARDSIGMOID(fake), decomposition_table[HARDSIGMOID](fake)
    assert isinstance(found.shape[0], torch.SymInt)
    assert (found.dtype, found.shape, found.stride()) == (wanted.dtype, wanted.shape, wanted.stride())


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
