"""Keeps what torch's exporter creates again for every export, which takes most of a small export's time."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode, fake_impls
from torch.export import exported_program
from torch.onnx._internal.exporter import _decomp, _registration

_Table = dict[Any, Callable[..., Any]]


def keep() -> None:
    """Create it once per process; each export gets copies."""
    _keep_torchlib()
    _keep_composites()
    _keep_overrides()
    _shape_elementwise()


def _keep_torchlib() -> None:
    """Keep the translations to ONNX, and the decompositions of what has none."""
    read_torchlib = functools.cache(_registration.ONNXRegistry.from_torchlib)
    make_decompositions = functools.cache(_decomp.create_onnx_friendly_decomposition_table)

    def from_torchlib(**options: Any) -> _registration.ONNXRegistry:
        registry = copy.copy(read_torchlib(**options))
        registry.functions = {target: list(functions) for target, functions in registry.functions.items()}
        return registry

    def create_table(implemented: set[Any]) -> _Table:
        return dict(make_decompositions(frozenset(implemented)))

    _registration.ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
    _decomp.create_onnx_friendly_decomposition_table = create_table


def _keep_composites() -> None:
    """Keep which operators are made of others, as long as no library registers more of them."""
    split = exported_program._split_decomp_table_to_cia_and_python_decomp
    kept: dict[Any, tuple[_Table, _Table]] = {}

    def split_once(table: _Table) -> tuple[_Table, _Table]:
        registered = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        key = frozenset(table.items()), frozenset(registered), frozenset(torch.ops._dir)
        tables = kept.get(key)
        if tables is None:
            tables = split(table)
            kept.clear()
            kept[key] = tables
        composites, others = tables
        return dict(composites), dict(others)

    exported_program._split_decomp_table_to_cia_and_python_decomp = split_once


@dataclass(frozen=True)
class _Overridden:
    """An operator's kernels before and during a decomposition, and what gives its results' shapes during it."""

    operator: Any
    before: _Table
    during: _Table
    shaped: Callable[..., Any]

    def put(self, kernels: _Table) -> None:
        self.operator.py_kernels.clear()
        self.operator.py_kernels.update(kernels)
        self.operator._dispatch_cache.clear()


def _keep_overrides() -> None:
    """Keep what composite operators are replaced by during a decomposition: 20 kernels for each of 500."""
    override, shapes = exported_program._override_composite_implicit_decomp, fake_impls.op_implementations_dict
    kept: dict[Any, list[_Overridden]] = {}

    @contextlib.contextmanager
    def override_once(composites: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
        key = frozenset(composites.items())
        overridden = kept.get(key)
        if overridden is None or any(each.operator.py_kernels != each.before for each in overridden):
            before = {operator: dict(operator.py_kernels) for operator in composites}
            with override(composites):
                kept.clear()
                kept[key] = [
                    _Overridden(operator, kernels, dict(operator.py_kernels), shapes[operator])
                    for operator, kernels in before.items()
                ]
                yield
            return
        try:
            for each in overridden:
                each.put(each.during)
                shapes[each.operator] = each.shaped
            yield
        finally:
            for each in overridden:
                each.put(each.before)
                shapes.pop(each.operator, None)

    exported_program._override_composite_implicit_decomp = override_once


def _shape_elementwise() -> None:
    """Tell the shapes of operators that torch decomposes to find them out, 4 times an export."""
    aten = torch.ops.aten

    @fake_impls.register_fast_op_impl(aten.hardsigmoid.default)
    def as_it_lies(mode: FakeTensorMode, x: Tensor) -> Tensor:
        with mode:
            return torch.empty_like(x)

    @fake_impls.register_fast_op_impl(aten.tril.default)
    @fake_impls.register_fast_op_impl(aten.triu.default)
    def in_rows(mode: FakeTensorMode, x: Tensor, *_: int) -> Tensor:
        with mode:
            return x.new_empty(x.shape)
