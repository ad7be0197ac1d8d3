"""List the backends that a model is compared on here, with the implementation of the op that each uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pom_export import contract
from pom_export.engine.build_config import FUNCTION
from pom_export.errors import MissingDependencyError, printable
from pom_export.graph.exported_model import ExportedModel
from pom_export.parity.emulation import EmulatedRunner
from pom_export.runtime.backend_names import ONNXRUNTIME
from pom_export.runtime.library import custom_ops_library
from pom_export.runtime.runners import OnnxRuntimeRunner, Runner
from pom_export.runtime.session import inference_session

EMULATION: Final = "onnxruntime emulating"
UNROUNDED: Final = "onnxruntime without rounding"
KERNEL: Final = "kernel"
STANDARD: Final = "standard operators"
"""The path of a file without a node of our ops, for example because another tool inlined the functions."""
INLINED: Final = "inlined"
"""The path of a backend that got an inlined copy of a file, because it does not expand functions."""

# The op types of our nodes, which ONNX Runtime reports without their domain.
_OPS: Final = (*contract.OP_NAMES, *contract.GATED_OP_NAMES)


@dataclass(frozen=True)
class Candidate:
    """A backend to compare.

    Attributes:
        backend: its name.
        path: the implementation of the op that it uses.
        runner: runs the model.
        rounds: whether it rounds values to the model's type. If not, only the weights of a half-precision model are
            rounded.
    """

    backend: str
    path: str
    runner: Runner
    rounds: bool = True

    @property
    def emulates(self) -> bool:
        """Whether a graph derived from the file is run instead of the file."""
        return isinstance(self.runner, EmulatedRunner)

    @property
    def by_onnxruntime(self) -> bool:
        """Whether ONNX Runtime runs it in this process, rather than a package for JavaScript or another runtime."""
        return isinstance(self.runner, OnnxRuntimeRunner)

    def kernels_run(self) -> int | None:
        """Return how many nodes ran in our kernels in the first call; None if unknown."""
        ran = self.runner.ran if isinstance(self.runner, OnnxRuntimeRunner) else None
        return None if ran is None else sum(count for name, count in ran.items() if name in _OPS)

    def path_taken(self) -> str:
        """Return the path, once the model has run: "kernel" only if one of our kernels ran."""
        return STANDARD if self.path == KERNEL and self.kernels_run() == 0 else self.path


def onnxruntime_candidates(model: ExportedModel) -> tuple[list[Candidate], list[str]]:
    """Return ONNX Runtime's candidates for a model on this machine, and the reasons why others are missing."""
    paths: list[str] = []
    missing = []
    if not model.aggregations:
        paths = [STANDARD]
    else:
        try:
            custom_ops_library()
            paths.append(KERNEL)
        except MissingDependencyError as error:
            missing.append(f"{ONNXRUNTIME} ({KERNEL}): {error.what}")
        if model.without_function:
            names = printable(", ".join(model.without_function))
            missing.append(f"{ONNXRUNTIME} ({FUNCTION}): the file has lost the functions of {names}")
        else:
            paths.append(FUNCTION)
    if model.precision == "bfloat16":
        return [_emulated(model, path) for path in paths], missing
    candidates = [_plain(model, path) for path in paths]
    return candidates + ([_emulated(model, path) for path in paths[:1] if model.precision == "float16"]), missing


def unrounded_candidates(model: ExportedModel, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the same paths of a half-precision model, computed in float32 so that only the weights are rounded.

    Args:
        model: the file.
        candidates: the candidates that round.
    """
    paths = dict.fromkeys(each.path for each in candidates if each.by_onnxruntime)
    return [
        Candidate(
            UNROUNDED,
            path,
            EmulatedRunner(f"{UNROUNDED} ({path})", model.path, kernels=path == KERNEL, rounds=False),
            rounds=False,
        )
        for path in paths
    ]


def _plain(model: ExportedModel, path: str) -> Candidate:
    def load(options: object) -> object:
        return inference_session(model.path, kernels=path == KERNEL, session_options=options)

    return Candidate(ONNXRUNTIME, path, OnnxRuntimeRunner(f"{ONNXRUNTIME} ({path})", load))


def _emulated(model: ExportedModel, path: str) -> Candidate:
    name = f"{EMULATION} {model.precision}"
    return Candidate(name, path, EmulatedRunner(f"{name} ({path})", model.path, kernels=path == KERNEL))
