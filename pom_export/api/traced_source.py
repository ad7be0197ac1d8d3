"""Trace a source once, and make graphs of it in any precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
import torch
from torch import nn

from pom_export.api.checking import cases_of_calls, trial_inputs
from pom_export.api.progress import Progress
from pom_export.api.size_trials import SizePlan
from pom_export.api.sizing import settle_sizes
from pom_export.api.source import Source
from pom_export.errors import InputError
from pom_export.graph.fusing.programs import fuse_program
from pom_export.graph.nodes import is_aggregation
from pom_export.graph.passes.recognise_causal import quadratic_notes
from pom_export.graph.program import Program
from pom_export.graph.programs.own_stateful import with_context_limits
from pom_export.graph.reaching import idle_notes
from pom_export.graph.tracing import Traced, export_graph, trace
from pom_export.parity.peaks import observe_peaks


@dataclass(frozen=True)
class TracedSource:
    """A source that has been traced.

    Attributes:
        source: the source.
        program: the program that was traced.
        traced: the result.
        sizes: the sizes at which to compare a file.
        opset: version of the standard ops.
        notes: remarks about how it was traced, one line each.
        hint: the likely reason if no mixer is found in it; empty if there is none.
    """

    source: Source
    program: Program
    traced: Traced
    sizes: SizePlan
    opset: int
    notes: Sequence[str]
    hint: str
    _peaks: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def graph(self, dtype: str, keep_float32: Sequence[str] = (), *, optimize: bool = True) -> ir.Model:
        """Return the graph of a file; each call returns another.

        Args:
            dtype: its type.
            keep_float32: names of modules, or patterns of names, that a half-precision graph computes in float32.
            optimize: whether to rewrite products and gates around the aggregations so that they cost less.

        Raises:
            InputError: no output comes from a mixer, a weight does not fit the type, or no module has such a name.
        """
        graph = export_graph(
            self.program,
            self.opset,
            {**self.source.properties, "dtype": dtype},
            optimize=optimize,
            dtype=dtype,
            keep_float32=keep_float32,
            shared=_shared(self.source.module),
            observe=self._observe,
            traced=replace(self.traced, graph=self.traced.graph.clone()),
        )
        if not any(map(is_aggregation, graph.graph.all_nodes())):
            raise InputError(
                "no output comes from a mixer",
                self.hint or "Give inputs for which the model calls a mixer, and return what depends on it",
            )
        return graph

    def notes_on(self, graph: ir.Model) -> list[str]:
        """Return remarks about a graph of it, one line each."""
        return [*quadratic_notes(graph), *(idle_notes(graph) if self.source.own_inputs else ())]

    def _observe(self, graph: ir.Model) -> Mapping[str, float]:
        """Return the magnitudes that a float32 graph's values reach; those of equal graphs are measured once."""
        names = " ".join(value.name or "" for node in graph.graph for value in node.outputs)
        if names not in self._peaks:
            self._peaks[names] = observe_peaks(graph, trial_inputs(self.source, self.program, self.sizes))
        return self._peaks[names]


def _shared(module: nn.Module) -> list[list[str]]:
    """Return the names of each module in another that has several."""
    names: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        names.setdefault(id(part), []).append(name)
    return [each for each in names.values() if len(each) > 1]


def trace_source(source: Source, opset: int, progress: Progress) -> TracedSource:
    """Trace a source, with our mixers in place of the user's.

    Raises:
        InputError: torch could not export the model, or its outputs change from call to call.
    """
    progress(f"tracing, opset {opset}")
    copied = source.substituted_copy(torch.float32)
    for part, why in copied.near_misses.items():
        progress(f"{part} looks like a mixer, but {why.what}; it stays as it is")
    program = source.program(copied)
    source.calls_op()  # refuses a model whose outputs change from call to call
    try:
        if source.own_state:
            traced = trace(program, opset)
            program, sizes = with_context_limits(program, traced.bounds), SizePlan(cases_of_calls(program))
        elif source.own_inputs:
            program, traced, sizes = settle_sizes(source, program, opset)
        else:
            traced, sizes = trace(program, opset), SizePlan()
    except InputError as error:
        if not copied.hint:
            raise
        raise InputError(error.what, copied.hint) from error
    fused = fuse_program(traced.graph) if source.is_program else []
    notes = [*copied.notes, *fused, *program.notes, *sizes.notes]
    return TracedSource(source, program, traced, sizes, opset, notes, copied.hint)
