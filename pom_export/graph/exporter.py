"""From a module to an ONNX model with the custom op, through torch.export and torch.onnx."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor
from torch.nn.modules import transformer

from pom_export.errors import InputError, reason_of
from pom_export.graph.passes import (
    AttachFunctionsPass,
    FactorGatePass,
    FuseGatePass,
    LowerPrecisionPass,
    NameByModulePass,
    NameDimensionsPass,
    RecogniseCausalPass,
    ShareTransposedPass,
    SplitProjectionPass,
    StampMetadataPass,
)
from pom_export.graph.precision import observe_peaks
from pom_export.graph.program import Program
from pom_export.graph.translation import translation_table

Feeds = Iterable[Mapping[str, Tensor]]
OPSETS = range(18, 25)
_DEFAULT_OPSET = 20
# HardSigmoid and Conv take bfloat16 from opset 22 on.
_BFLOAT16_OPSET = 22
# Protocol buffers end at 2 GB; beyond this the weights go to a file of their own.
_EXTERNAL_DATA_BYTES = 1_500_000_000


def default_opset(dtype: str) -> int:
    """Return the opset to export a type with when none is asked for."""
    return _BFLOAT16_OPSET if dtype == "bfloat16" else _DEFAULT_OPSET


def check_opset(opset: int) -> None:
    """Raise InputError for an opset that the function body or torch.onnx does not support."""
    if opset not in OPSETS:
        raise InputError(f"opset {opset} is not supported", f"Choose {OPSETS.start} to {OPSETS.stop - 1}")


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Silence what torch and its exporter say of their internals; nothing of it is the user's to mend."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _traceable_transformers() -> Iterator[None]:
    """Let torch's Transformer layers be traced with a mask: they look at its values to find out if it is causal.

    While tracing there are none. The answer no is always right: the mask itself is applied all the same.
    """

    def as_told(_: Tensor | None, is_causal: bool | None = None, __: int | None = None) -> bool:
        return bool(is_causal)

    with mock.patch.object(transformer, "_detect_is_causal_mask", as_told):
        yield


def trace(program: Program, opset: int) -> ir.Model:
    """Run torch.export and torch.onnx over a program, and return the graph.

    Raises:
        InputError: torch could not trace or translate the model; the first line of its reason is kept.
    """
    return _traced(program, opset).model


def _traced(program: Program, opset: int) -> torch.onnx.ONNXProgram:
    """Return the graph and the program of torch.export that it was made from.

    Raises:
        InputError: torch could not trace or translate the model; the first line of its reason is kept.
    """
    with _quiet_torch(), _traceable_transformers(), torch.no_grad():
        try:
            exported = torch.onnx.export(
                program.module.eval(),
                args=(),
                kwargs=dict(program.inputs),
                dynamo=True,
                opset_version=opset,
                input_names=list(program.inputs),
                output_names=list(program.outputs),
                dynamic_shapes=None if program.dynamic_shapes is None else dict(program.dynamic_shapes),
                custom_translation_table=translation_table(),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = reason_of(error.__cause__ or error)
            raise InputError(f"torch could not export the model: {reason}", "Run with --debug for the trace") from error
    assert exported is not None
    return exported


def _optimizations(dtype: str) -> list[ir.passes.InPlacePass]:
    """Return the passes that make a graph faster and change no more than rounding."""
    # What is factored needs no fused gate.
    factor = [] if dtype == "float16" else [FactorGatePass()]
    return [SplitProjectionPass(), *factor, FuseGatePass(), common.RemoveUnusedNodesPass()]


def _lowering(
    traced: torch.onnx.ONNXProgram, program: Program, dtype: str, feeds: Feeds
) -> list[ir.passes.InPlacePass]:
    """Return the passes that make a graph half precision."""
    if dtype == "float32":
        return []
    peaks = {}
    if dtype == "float16":  # bfloat16 has float32's range
        assert traced.exported_program is not None
        with _quiet_torch():
            peaks = observe_peaks(traced.exported_program, feeds, program.outputs)
    return [LowerPrecisionPass(ir.DataType[dtype.upper()], peaks), common.RemoveUnusedNodesPass()]


def export_graph(
    program: Program,
    opset: int,
    properties: Mapping[str, str],
    *,
    optimize: bool = True,
    dtype: str = "float32",
    feeds: Feeds = (),
) -> ir.Model:
    """Trace a program and apply the passes.

    Args:
        program: what to trace, in float32.
        opset: version of the standard ops.
        properties: metadata to write besides the program's own.
        optimize: whether products and gates around the aggregations are rewritten to cost less.
        dtype: type of the graph: "float32", "float16" or "bfloat16".
        feeds: float32 inputs by name, on which the values of a float16 graph are known to fit, or kept in float32.

    Raises:
        InputError: the opset is not supported, torch could not export the model, or a weight does not fit the type.
    """
    check_opset(opset)
    traced = _traced(program, opset)
    passes = ir.passes.Sequential(
        NameByModulePass(program.prefix),
        NameDimensionsPass(),
        RecogniseCausalPass(),
        common.RemoveUnusedNodesPass(),
        # Before weights are cut: what is used whole and transposed too stays one.
        ShareTransposedPass(),
        *(_optimizations(dtype) if optimize else ()),
        *_lowering(traced, program, dtype, feeds),
        AttachFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        StampMetadataPass({**program.properties, **properties}),
    )
    try:
        return passes(traced.model).model
    except ir.passes.PassError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise


def save_model(model: ir.Model, path: Path) -> None:
    """Save a model, its weights in `path`.data when they are large, and check it with onnx.checker.

    Raises:
        InputError: the checker refuses it: an op does not take the model's type at this opset; or ONNX Runtime would
            take the file for one of its own format.
    """
    if path.suffix == ".ort":
        raise InputError(f"ONNX Runtime takes {path.name} for a file of its own format", "Choose another suffix")
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    external_data = f"{path.name}.data" if size > _EXTERNAL_DATA_BYTES else None
    # Without a format, one would be chosen by the suffix.
    ir.save(model, path, format="protobuf", external_data=external_data)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = reason_of(error)
        raise InputError(
            f"the model is not valid at opset {model.opset_imports['']}: {reason}",
            f"Try a newer one, up to --opset {OPSETS.stop - 1}",
        ) from error
