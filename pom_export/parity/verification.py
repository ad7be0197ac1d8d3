"""Compare an exported model with PyTorch on every backend that runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pom_export.errors import SEE_CAUSE, InputError, printable, reason_of
from pom_export.parity.candidates import Candidate
from pom_export.parity.case import Arrays, Case, run_case, widened
from pom_export.parity.comparison import Difference, compare_outputs
from pom_export.parity.names import SAME_NAMES, Names
from pom_export.parity.report import CaseResult, Comparison
from pom_export.parity.targets import Target
from pom_export.parity.tolerances import Bounds, Growth, Tolerance
from pom_export.quiet import quiet_polygraphy
from pom_export.runtime.runners import run_module

if TYPE_CHECKING:
    from torch import nn

_LONGEST_NAME = 100
Infer = Callable[[Arrays], Arrays]


class PathError(InputError):
    """A backend cannot load or run the model on one path; other paths may work."""


def compare(
    cases: Sequence[Case],
    targets: Sequence[Target],
    candidate: Candidate,
    tolerance: Tolerance,
    bounds: Bounds | Growth | None = None,
    names: Names = SAME_NAMES,
) -> list[Comparison]:
    """Run a candidate on the cases and compare every output, holding the outputs of only one case at a time.

    Args:
        cases: the inputs.
        targets: the expected outputs, case by case.
        candidate: the backend.
        tolerance: the bound on each floating-point output.
        bounds: further bounds in terms of the effect of rounding on the reference, if known.
        names: the candidate's names of inputs and outputs.

    Raises:
        PathError: the candidate cannot load or run the model.
        InputError: the reference fails.
    """
    found: dict[str, list[CaseResult]] = {}
    with quiet_polygraphy(), ExitStack() as loaded:
        with _as_path_error(candidate):
            runner = loaded.enter_context(candidate.runner)
        infer = names.translated(runner.infer)
        for index, case in enumerate(cases):
            given = case if candidate.rounds else widened(case)
            # The target is not bound to a name: it may be large, and is freed before the next one is made.
            its = _compare_case(infer, given, _wanted(targets[index], candidate), tolerance, bounds, candidate)
            for name, result in its.items():
                found.setdefault(name, []).append(CaseResult(_shown(case.name), _shapes(case.feed), result))
    path = candidate.path_taken()
    return [Comparison(candidate.backend, path, _shown(name), tuple(results)) for name, results in found.items()]


@contextmanager
def _as_path_error(candidate: Candidate) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise PathError(error.what, error.hint) from error
    except Exception as error:
        reason = reason_of(error)
        raise PathError(f"{candidate.runner.name} failed: {reason}", SEE_CAUSE) from error


def _wanted(target: Target, candidate: Candidate) -> Target | None:
    return target if candidate.rounds else target.unrounded


def _compare_case(
    infer: Infer,
    case: Case,
    target: Target | None,
    tolerance: Tolerance,
    bounds: Bounds | Growth | None,
    candidate: Candidate,
) -> dict[str, Difference]:
    if target is None:
        return {}  # the effect of rounding is not known here
    with _as_path_error(candidate):
        actual = run_case(infer, case)
    return compare_outputs(case.feed, target, actual, tolerance, bounds, partial=case.partial)


def record(
    module: nn.Module, names: Sequence[str], case: Case, dtype: npt.DTypeLike = np.float64
) -> dict[str, np.ndarray[Any, Any]]:
    """Compute a case's outputs with a module, and give them names in their order.

    Args:
        module: the module.
        names: the outputs' names.
        case: the case.
        dtype: the module's floating-point type, float64 or float32.

    Raises:
        InputError: the module fails on the case.
    """

    def infer(feed: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        return dict(zip(names, run_module(module, feed, dtype), strict=True))

    with quiet_polygraphy():  # torch warns of products of mixed types too
        try:
            return infer(case.feed) if case.one_pass else run_case(infer, case)
        except Exception as error:
            raise InputError(
                f"PyTorch fails on the case {_shown(case.name)} ({_shapes(case.feed)}): {reason_of(error)}",
                SEE_CAUSE,
            ) from error


def _shapes(feed: Mapping[str, np.ndarray[Any, Any]]) -> str:
    return ", ".join(f"{_shown(name)} {'x'.join(map(str, array.shape))}" for name, array in feed.items())


def _shown(name: str) -> str:
    """Return a name as a report shows it; it may come from a file."""
    return printable(name, _LONGEST_NAME)
