"""Turn a module into an ONNX model with the custom op, through torch.export and torch.onnx."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor
from torch.export import ExportedProgram

from pom_export.errors import SEE_CAUSE, InputError
from pom_export.graph.claims import Bounds
from pom_export.graph.detached_data import DetachedData
from pom_export.graph.dynamic_shapes import is_hint, trace_shapes
from pom_export.graph.exported_model import nested
from pom_export.graph.opsets import check_opset
from pom_export.graph.passes import (
    AttachFunctionsPass,
    ClaimLeastPass,
    DelayTransposePass,
    DivideNormsPass,
    FactorGatePass,
    FoldTablesPass,
    FuseGatePass,
    LowerPrecisionPass,
    NameByModulePass,
    NameDimensionsPass,
    RecogniseCausalPass,
    ShareTransposedPass,
    SplitProjectionPass,
    StampMetadataPass,
)
from pom_export.graph.passes.lower_precision import Observe
from pom_export.graph.pooling import BinnedPooling
from pom_export.graph.program import Program
from pom_export.graph.refusals import place_of, refusal
from pom_export.graph.size_bounds import traced_bounds
from pom_export.graph.size_branches import branch_sizes
from pom_export.graph.size_numbers import SizeNumber, size_numbers
from pom_export.graph.splitting import SlicedSplits
from pom_export.graph.stand_in import stand_in_paths
from pom_export.graph.translation import translation_table
from pom_export.process_wide import Shared
from pom_export.quiet import quiet_torch
from pom_export.torch_modes import no_transforms_left
from pom_export.torch_patches import fixed_sizes, traceable_transformers

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_LOG = logging.getLogger(__name__)
_REFUSED = "torch could not export the model"


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Pause the cyclic garbage collector, which takes a third of the tracing time and frees almost nothing."""
    enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if enabled:
            gc.enable()


_WITHOUT_COLLECTOR = Shared(_without_collector)


@dataclass(frozen=True)
class Traced:
    """The result of tracing a program.

    Attributes:
        graph: the graph before our passes; dynamic dimensions have their names in the file.
        bounds: the smallest and the largest size for which it is valid, for dynamic dimensions that are bounded.
        branches: for some dimensions, sizes at which the model may take a branch other than the traced one.
        numbers: numbers that the model computes from sizes, which the graph fixes to the example's.
        run: runs what torch traced, at any sizes, including those that torch does not vouch for.
    """

    graph: ir.Model
    bounds: Mapping[str, Bounds]
    branches: Mapping[str, Sequence[int]] = field(default_factory=dict)
    numbers: Sequence[SizeNumber] = ()
    run: Callable[[Mapping[str, Tensor]], Any] | None = None

    @property
    def axes(self) -> list[tuple[int | str, ...]]:
        """The sizes and the names of dynamic dimensions of each input."""
        return [
            tuple(s if isinstance(s, int) else str(s) for s in value.shape or ()) for value in self.graph.graph.inputs
        ]


@contextlib.contextmanager
def _sizes_fixed_where_used(program: Program) -> Iterator[None]:
    """Let torch fix sizes that a model uses as numbers, unless the user asked for dynamic ones by name.

    Otherwise torch leaves them dynamic in the graph, and just notes that they must have those values.
    """
    given = [hint for axes in (program.dynamic_shapes or {}).values() for hint in axes.values()]
    if all(is_hint(hint) for hint in given):
        with fixed_sizes.block():
            yield
    else:
        yield


@contextlib.contextmanager
def tracing_modes() -> Iterator[None]:
    """Set up everything that tracing needs: torch is quiet, and what it can't trace is replaced."""
    with (
        quiet_torch(),
        traceable_transformers.block(),
        _WITHOUT_COLLECTOR.block(),
        torch.no_grad(),
        no_transforms_left(),
        SlicedSplits(),
        BinnedPooling(),
        DetachedData(),
    ):
        yield


def trace(program: Program, opset: int) -> Traced:
    """Trace a program with torch.export and torch.onnx.

    Raises:
        InputError: torch could not trace or translate the model; the message says why, and where in the model.
    """
    with tracing_modes(), _sizes_fixed_where_used(program):
        try:
            exported = torch.onnx.export(
                program.module.eval(),
                args=(),
                kwargs=nested(program.inputs),
                dynamo=True,
                opset_version=opset,
                input_names=list(program.inputs),
                output_names=list(program.outputs),
                dynamic_shapes=None if program.dynamic_shapes is None else nested(trace_shapes(program.dynamic_shapes)),
                custom_translation_table=translation_table(),
                verbose=False,
            )
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # the tracer runs the user's code, and may itself fail
            raise refusal(_REFUSED, error, program.module, SEE_CAUSE) from error
    assert exported is not None
    _LOG.debug("traced by torch %s, opset %d", torch.__version__, opset)
    assert exported.exported_program is not None
    _refuse_random(exported.model)
    NameDimensionsPass()(exported.model)
    traced = Traced(exported.model, {})
    program_of_torch, axes = exported.exported_program, traced.axes
    numbers = size_numbers(program_of_torch, dict(zip(program.inputs, axes, strict=True)))
    return replace(
        traced,
        bounds=traced_bounds(program_of_torch, axes, {each.dimension: each.bounds for each in numbers}),
        branches=branch_sizes(program_of_torch, axes),
        numbers=numbers,
        run=functools.partial(_run_unchecked, program_of_torch),
    )


def _run_unchecked(program: ExportedProgram, inputs: Mapping[str, Tensor]) -> Any:
    # Calling the module would run hooks that check the sizes.
    return program.module(check_guards=False).forward(**nested(inputs))


def _refuse_random(model: ir.Model) -> None:
    """Raise InputError if a graph draws random numbers, which two runs of the model with one seed do not reveal."""
    common.RemoveUnusedNodesPass()(model)
    for node in model.graph.all_nodes():
        if node.op_type in _RANDOM:
            raise InputError(
                f"the model itself draws random numbers: {node.op_type}{place_of(node)}",
                "Switch that off",
            )


def _optimizations(dtype: str) -> list[ir.passes.InPlacePass]:
    """Return the passes that make a graph faster, with no effect beyond rounding."""
    # A factored gate need not be fused.
    factor = [] if dtype == "float16" else [FactorGatePass()]
    return [SplitProjectionPass(), *factor, FuseGatePass(), DivideNormsPass(), common.RemoveUnusedNodesPass()]


def _in_precision(
    dtype: str, observe: Observe, keep: Sequence[str], shared: Sequence[Collection[str]]
) -> list[ir.passes.InPlacePass]:
    """Return the passes that convert a graph to half precision."""
    if dtype == "float32":
        return []
    lower = LowerPrecisionPass(ir.DataType[dtype.upper()], observe, keep, shared)
    return [lower, DelayTransposePass(), common.RemoveUnusedNodesPass()]


def _nothing_seen(_: ir.Model) -> Mapping[str, float]:
    return {}


def export_graph(
    program: Program,
    opset: int,
    properties: Mapping[str, str],
    *,
    optimize: bool = True,
    dtype: str = "float32",
    keep_float32: Sequence[str] = (),
    shared: Sequence[Collection[str]] = (),
    observe: Observe = _nothing_seen,
    traced: Traced | None = None,
) -> ir.Model:
    """Trace a program and apply the passes.

    Args:
        program: the program to trace, in float32.
        opset: version of the standard ops.
        properties: metadata to write in addition to the program's own.
        optimize: whether to rewrite norms, and products and gates around the aggregations, so that they cost less.
        dtype: type of the graph: "float32", "float16" or "bfloat16".
        keep_float32: names of modules, or patterns of names, that a half-precision graph computes in float32.
        shared: the names of each module that has several, which are kept in float32 under all of them.
        observe: returns the magnitudes that a float32 graph's values reach, by name, which determine what a float16
            graph keeps in float32. If it returns nothing, only the weights determine that.
        traced: the result of `trace` for the program, if it has been traced already; its graph is changed.

    Raises:
        InputError: the opset is not supported, torch could not export the model, or a weight does not fit the type.
    """
    check_opset(opset)
    passes = ir.passes.Sequential(
        NameByModulePass(
            program.prefix, stand_in_paths(program.module) if program.stand_ins is None else program.stand_ins
        ),
        RecogniseCausalPass(),
        FoldTablesPass(),
        common.RemoveUnusedNodesPass(),
        # Before weights are split, so that a weight used whole and transposed stays a single one.
        ShareTransposedPass(),
        *(_optimizations(dtype) if optimize else ()),
        *_in_precision(dtype, observe, keep_float32, shared),
        AttachFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        ClaimLeastPass(),
        StampMetadataPass({**program.properties, **properties}),
    )
    try:
        return passes((traced or trace(program, opset)).graph).model
    except ir.passes.PassError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise
