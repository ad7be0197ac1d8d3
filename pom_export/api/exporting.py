"""Export a checkpoint or a module to an ONNX file that has been compared with PyTorch."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pom_export.api.arguments import check_count, check_keep, file_settings
from pom_export.api.checking import check
from pom_export.api.progress import Progress, silent
from pom_export.api.side_files import check_recording_place, own_side_files
from pom_export.errors import only_ours
from pom_export.files import sha256_of, staged_output
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.parity.recording import recording_path
from pom_export.stages import logged

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.size_trials import SizePlan
    from pom_export.api.source import Examples, Source
    from pom_export.graph.program import Program
    from pom_export.graph.replacing import Adapters


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportResult:
    """The outcome of `export`.

    Attributes:
        model: path of the ONNX file.
        opset: version of the standard ops.
        aggregations: number of aggregation nodes; 0 for an inlined file.
        inlined: number of aggregations that standard operators compute instead, if `inline` was given.
        inputs: name, dtype and axes of each input.
        outputs: the same for each output.
        bytes: size of the file (and of its external weights, if any).
        sha256: the file's hash.
        checked: backends whose outputs agree with PyTorch's.
        kept_in_float32: modules of a half-precision model that stay in float32 because their values may exceed the
            type's range, or because `keep_float32` chose them; each with the reason.
        weights: name of the exported set of weights, for a checkpoint; see `load_checkpoint`.
        other_weights: names of the checkpoint's other sets.
        notes: further remarks about the file, one line each, such as sizes that it fixes or paths with quadratic cost.
    """

    model: str
    opset: int
    aggregations: int
    inlined: int
    inputs: list[str]
    outputs: list[str]
    bytes: int
    sha256: str
    checked: list[str]
    kept_in_float32: dict[str, str]
    notes: list[str] = field(default_factory=list)
    weights: str | None = None
    other_weights: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-serialisable values."""
        return asdict(self)


@only_ours
def export(
    model: str | os.PathLike[str] | nn.Module,
    output: str | os.PathLike[str],
    *,
    example_inputs: Examples | None = None,
    dynamic_shapes: Any = None,
    mask: str | None = None,
    cross: bool = False,
    positions: bool = False,
    stateful: bool = False,
    block_causal: bool = False,
    static: tuple[int, int] | None = None,
    dtype: str = "float32",
    keep_float32: Sequence[str] = (),
    opset: int | None = None,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    mixers: Adapters | None = None,
    weights: str | None = None,
    optimize: bool = True,
    inline: bool = False,
    samples: int = 0,
    progress: Progress = silent,
) -> ExportResult:
    """Export a checkpoint or a module to ONNX, and compare it with PyTorch before the file appears.

    Args:
        model: path of a checkpoint, one of our models, or any module that contains our mixers or official ones.
        output: path of the ONNX file.
        example_inputs: inputs to trace a module of any other class with: tensors in the order of its `forward`'s
            parameters (None omits one), or by name.
        dynamic_shapes: which dimensions of such a module are dynamic, in any form that torch.export accepts: by input
            name or in the order of the inputs; for each input, by axis or with one entry per axis; for each axis, a
            Dim, its name, or a hint such as Dim.AUTO; or a ShapesCollection or AdditionalInputs. Default: the model's
            rows and tokens.
        mask: "none", "causal", "padding" or "full"; default: the architecture's own.
        cross: whether the mixer gets a separate context input.
        positions: whether a rotary mixer gets its tokens' positions as an input.
        stateful: take the state of earlier calls as inputs (past_state, past_length and whatever else the layers keep),
            and return the next state as outputs. However a sequence is split into calls, the outputs are those of one
            causal pass. With mask "padding", a (B, N) input marks the valid tokens of each row in a call.
        block_causal: let every token of a call to a stateful mixer see the whole call, not only the tokens up to
            itself.
        static: (batch, tokens) to fix; default: both are dynamic.
        dtype: "float32", "float16" or "bfloat16" ("fp16", "half" and "bf16" work too): the type of weights,
            activations, inputs and outputs. Operations that need float32 stay in it: norms, softmax, angles, and
            aggregates and outputs that may exceed the type's range.
        keep_float32: modules of a half-precision model to compute in float32, with all that is inside them: their names
            in the model, or patterns such as "blocks.*.mixer". Outputs that they compute are float32.
        opset: version of the standard ops; default: 20, or 22 for bfloat16.
        family: the checkpoint's family, if it cannot be recognised; see `load_checkpoint`.
        degree: degree of a v1 checkpoint, which cannot be inferred from its shapes.
        heads: number of attention heads of a hybrid checkpoint, if it cannot be inferred.
        in_context_start: for an image model's checkpoint; see `load_checkpoint`.
        mixers: adapters for classes of the user's own that compute what one of our mixers does. Maps each class to a
            function that takes an instance and returns our mixer with its weights, or a module that contains one and is
            called like the instance.
        weights: which of several sets of weights in a checkpoint to export; see `load_checkpoint`.
        optimize: whether to rewrite products and gates around the aggregations so that they cost less.
        inline: write only standard operators, without functions and without the custom op, for runtimes that do not
            expand functions. No kernel of ours runs such a file.
        samples: number of inputs and outputs to save beside the model, for `verify` without the checkpoint.
        progress: called with one line per stage; the lines are also logged at level INFO.

    Raises:
        InputError: the checkpoint, an option or the output is unusable, a weight does not fit the type, or no module
            has a name in `keep_float32`.
        ParityError: outputs differ from PyTorch's; no file is written.
    """
    from pom_export.api.source import load_source, type_notes
    from pom_export.graph.options import GraphOptions
    from pom_export.torch_modes import plain_modes, same_generators

    dtype, opset = file_settings(dtype, opset)
    check_keep(keep_float32, dtype)
    check_count("samples", samples, "0 saves none")
    checkpoint = model if isinstance(model, (str, os.PathLike)) else None
    progress = logged(progress, _LOG)
    beside = [recording_path(output)] if samples else []
    staging = staged_output(output, checkpoint, beside=beside, stale=lambda: own_side_files(output))
    with plain_modes() as modes, same_generators(), staging as staged:
        if samples:
            check_recording_place(output)
        source = load_source(
            model,
            GraphOptions(mask, cross, positions, static, stateful, block_causal),
            example_inputs=example_inputs,
            dynamic_shapes=dynamic_shapes,
            hints={
                "family": family,
                "degree": degree,
                "heads": heads,
                "in_context_start": in_context_start,
                "weights": weights,
            },
            mixers=mixers,
            progress=progress,
        )
        written = _write(source, staged, dtype, keep_float32, opset, progress, optimize=optimize, inline=inline)
        exported = read_model(staged)
        for module, reason in exported.kept_in_float32.items():
            progress(f"{module} stays in float32: {reason}")
        count = exported.inlined or len(exported.aggregations)
        progress(f"{count} aggregation{'s' if count != 1 else ''}; comparing with PyTorch")
        sha256 = sha256_of(staged)
        checked = check(exported, sha256, source, written.program, written.sizes, samples)
        notes = [*source.notes, *written.notes, *checked.notes, *type_notes(source.module, dtype)]
        if modes.autocast:
            notes.append(f"the model's torch.autocast has no effect: the file computes in {dtype}, as dtype says")
        return _result(output, exported, sha256, source, checked.paths, notes)


def _result(
    output: str | os.PathLike[str],
    exported: ExportedModel,
    sha256: str,
    source: Source,
    checked: list[str],
    notes: list[str],
) -> ExportResult:
    """Describe the staged file, which is about to become `output`."""
    return ExportResult(
        model=os.fspath(output),
        **exported.facts(),
        aggregations=len(exported.aggregations),
        inlined=exported.inlined,
        sha256=sha256,
        checked=checked,
        kept_in_float32=dict(exported.kept_in_float32),
        notes=notes,
        weights=source.weights,
        other_weights=list(source.other_weights),
    )


@dataclass(frozen=True)
class _Written:
    """What a staged file was made from.

    Attributes:
        program: the program that was traced.
        sizes: the sizes at which to compare the file.
        notes: remarks about the file, one line each.
    """

    program: Program
    sizes: SizePlan
    notes: list[str]


def _write(
    source: Source,
    path: Path,
    dtype: str,
    keep_float32: Sequence[str],
    opset: int,
    progress: Progress,
    *,
    optimize: bool,
    inline: bool,
) -> _Written:
    """Trace the source and save the graph. Both graphs are freed before anything is compared."""
    from pom_export.api.traced_source import trace_source
    from pom_export.graph.inlining import inline_functions
    from pom_export.graph.saving import save_model

    traced = trace_source(source, opset, progress)
    graph = traced.graph(dtype, keep_float32, optimize=optimize)
    notes = [*traced.notes, *traced.notes_on(graph)]
    if inline:
        inline_functions(graph)
    save_model(graph, path)
    return _Written(traced.program, traced.sizes, notes)
