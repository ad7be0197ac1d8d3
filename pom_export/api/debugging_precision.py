"""Find the modules that must stay in float32 so that a half-precision file meets a tolerance."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pom_export.api.arguments import check_bounds, check_count, check_half, file_settings
from pom_export.api.progress import Progress, silent
from pom_export.debugging.blocks import modules_in, parts_of
from pom_export.debugging.precision import PrecisionReport, PrecisionTrial
from pom_export.debugging.smallest import smallest_set
from pom_export.engine.build_config import FUNCTION
from pom_export.errors import InputError, only_ours
from pom_export.files import scratch_folder
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.graph.module_names import no_modules
from pom_export.graph.module_values import ModuleValues
from pom_export.graph.saving import save_model
from pom_export.parity import tolerances
from pom_export.parity.candidates import EMULATION, KERNEL, Candidate
from pom_export.parity.case import Case
from pom_export.parity.comparison import share_of_tolerance
from pom_export.parity.emulation import EmulatedRunner
from pom_export.parity.inputs import Inputs, case_of
from pom_export.parity.targets import Targets
from pom_export.parity.tolerances import Tolerance
from pom_export.parity.verification import compare
from pom_export.runtime.library import has_custom_ops_library
from pom_export.stages import logged

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Examples
    from pom_export.api.traced_source import TracedSource
    from pom_export.graph.replacing import Adapters

_LOG = logging.getLogger(__name__)
# Of more parts than these, the modules inside are not tried one by one: that would take many trials.
_MOST_SPLIT: Final = 4


@only_ours
def debug_precision(
    model: str | os.PathLike[str] | nn.Module,
    *,
    dtype: str = "float16",
    rtol: float | None = None,
    atol: float | None = None,
    inputs: Inputs | None = None,
    seed: int = 0,
    example_inputs: Examples | None = None,
    dynamic_shapes: Any = None,
    mask: str | None = None,
    cross: bool = False,
    positions: bool = False,
    stateful: bool = False,
    block_causal: bool = False,
    static: tuple[int, int] | None = None,
    opset: int | None = None,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    mixers: Adapters | None = None,
    weights: str | None = None,
    optimize: bool = True,
    progress: Progress = silent,
) -> PrecisionReport:
    """Find the modules that must stay in float32 so that a half-precision file meets a tolerance.

    The model is traced once. By bisection over its blocks and the modules outside of blocks, and then over the modules
    in those that were found, files are made that compute some modules in float32. Each is run as a device that computes
    in the half type would run it, and its outputs are compared with PyTorch's in float64 on the same inputs.

    Args:
        model: what `export` takes. So are all arguments that are not listed here.
        dtype: "float16" or "bfloat16".
        rtol: bound on an output's error, relative to the largest magnitude in PyTorch's output; default: what `verify`
            allows for the type.
        atol: the part of the bound that does not depend on that; default: what `verify` allows for the type.
        inputs: a .npz, or arrays by name, to compare on instead of what an export is compared on.
        seed: seed of the random inputs.
        example_inputs: see `export`.
        dynamic_shapes: see `export`.
        mask: see `export`.
        cross: see `export`.
        positions: see `export`.
        stateful: see `export`.
        block_causal: see `export`.
        static: see `export`.
        opset: see `export`.
        family: see `export`.
        degree: see `export`.
        heads: see `export`.
        in_context_start: see `export`.
        mixers: see `export`.
        weights: see `export`.
        optimize: see `export`.
        progress: called with one line per stage and per trial; the lines are also logged at level INFO.

    Returns:
        A report, which is truthy if a file in this type can meet the tolerance. Its `keep` is `export`'s
        `keep_float32`.

    Raises:
        InputError: the model or an argument is unusable.
    """
    from pom_export.api.source import load_source
    from pom_export.api.traced_source import trace_source
    from pom_export.graph.options import GraphOptions
    from pom_export.torch_modes import plain_modes, same_generators

    dtype, opset = file_settings(dtype, opset)
    check_half(dtype)
    check_bounds(rtol, atol)
    check_count("seed", seed, "The same seed draws the same inputs")
    progress = logged(progress, _LOG)
    hints = {"family": family, "degree": degree, "heads": heads, "in_context_start": in_context_start}
    with plain_modes(), same_generators():
        source = load_source(
            model,
            GraphOptions(mask, cross, positions, static, stateful, block_causal),
            example_inputs=example_inputs,
            dynamic_shapes=dynamic_shapes,
            hints={**hints, "weights": weights},
            mixers=mixers,
            progress=progress,
        )
        if inputs is not None and source.own_state:
            raise InputError("`inputs` can't be split into the calls of a module with a state", "Leave `inputs` out")
        traced = trace_source(source, opset, progress)
        tolerance = tolerances.bounded(dtype, rtol, atol)
        return _search(_Trials(traced, dtype, tolerance, inputs, seed, progress, optimize=optimize))


def _search(trials: _Trials) -> PrecisionReport:
    """Try files until a smallest set of modules is found."""
    graph = ModuleValues(trials.traced.graph("float32", optimize=trials.optimize))
    parts = parts_of(graph)

    def report(keep: Sequence[str] | None) -> PrecisionReport:
        tolerance = trials.tolerance
        made = list(trials.made.values())
        return PrecisionReport(trials.dtype, tolerance.relative, tolerance.absolute, keep, parts, made)

    if trials.made_with([]):
        return report([])
    if not parts:
        raise no_modules()
    if not trials.made_with(parts):
        return report(None)
    found = smallest_set(parts, lambda keep: bool(trials.made_with(keep)))
    inner = [name for part in found for name in modules_in(graph, part) or [part]]
    if len(found) <= _MOST_SPLIT and len(inner) > len(found) and trials.made_with(inner):
        found = smallest_set(inner, lambda keep: bool(trials.made_with(keep)))
    if not trials.made_with(found):  # errors may cancel each other, so that more in float32 can be worse
        found = list(min((each for each in trials.made.values() if each), key=lambda each: len(each.keep)).keep)
    return report(found)


class _Trials:
    """Makes files with some modules in float32, and compares each with PyTorch.

    Args:
        traced: the model.
        dtype: the files' half type.
        tolerance: the bound on their outputs' errors.
        inputs: inputs to compare on; None: those that an export is compared on.
        seed: seed of random inputs.
        progress: called with one line per trial.
        optimize: whether to rewrite products and gates.
    """

    def __init__(
        self,
        traced: TracedSource,
        dtype: str,
        tolerance: Tolerance,
        inputs: Inputs | None,
        seed: int,
        progress: Progress,
        *,
        optimize: bool,
    ) -> None:
        self.traced = traced
        self.dtype = dtype
        self.tolerance = tolerance
        self.optimize = optimize
        self.made: dict[frozenset[str], PrecisionTrial] = {}
        self._inputs = inputs
        self._seed = seed
        self._progress = progress
        self._expected: tuple[list[Case], Targets] | None = None

    def made_with(self, keep: Sequence[str]) -> PrecisionTrial:
        """Return the trial with these modules in float32, which is made once."""
        key = frozenset(keep)
        if key not in self.made:
            with scratch_folder() as folder:
                self.made[key] = trial = self._make(folder / "trial.onnx", keep)
            self._progress(f"trial {len(self.made)}: {trial}")
        return self.made[key]

    def _make(self, path: Path, keep: Sequence[str]) -> PrecisionTrial:
        try:
            save_model(self.traced.graph(self.dtype, keep, optimize=self.optimize), path)
        except InputError as error:  # a weight does not fit the type
            return PrecisionTrial(keep, passed=False, refused=error.what)
        exported = read_model(path)
        cases, targets = self._cases_and_targets(exported)
        kernels = has_custom_ops_library()
        way = KERNEL if kernels else FUNCTION
        runner = EmulatedRunner(f"{EMULATION} {self.dtype} ({way})", path, kernels=kernels)
        found = compare(cases, targets, Candidate(f"{EMULATION} {self.dtype}", way, runner), self.tolerance)
        comparison = max(found, key=lambda each: share_of_tolerance(each.worst.difference))
        worst = comparison.worst
        off = worst.difference.max_rel
        return PrecisionTrial(keep, all(found), off, comparison.output, worst.case, exported.bytes)

    def _cases_and_targets(self, exported: ExportedModel) -> tuple[list[Case], Targets]:
        """Return the inputs and PyTorch's outputs, which are the same for all trials: so are the files' inputs."""
        from pom_export.api.checking import cases_for, reference_for

        if self._expected is None:
            source, program = self.traced.source, self.traced.program
            if self._inputs is None:
                cases = cases_for(exported, source, program, self.traced.sizes, self._seed)
            else:
                cases = [case_of(self._inputs, exported.inputs, exported.limits)]
            reference = reference_for(exported, source, program, rounded=False)
            self._expected = cases, Targets(cases, reference.target)
        return self._expected
