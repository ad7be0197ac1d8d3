"""What a benchmark is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pom_export.bench.machine import usable_processors
from pom_export.bench.timing import Effort
from pom_export.errors import InputError

TORCH: Final = "torch"
TORCH_COMPILE: Final = "torch-compile"
PLAIN: Final = "plain"
FUNCTION: Final = "function"
KERNEL: Final = "kernel"
ATTENTION: Final = "attention"
ATTENTION_SHARED: Final = "attention-shared"
MATMUL: Final = "matmul"
TENSORRT: Final = "tensorrt"
# In the order of the tables' columns, as are those of a stream.
BACKENDS: Final = {
    TORCH: "the published algorithm in eager PyTorch",
    TORCH_COMPILE: "the same, compiled by torch.compile",
    PLAIN: "the same, exported by torch.onnx.export to standard ops, in ONNX Runtime",
    FUNCTION: "our export in ONNX Runtime, without our library",
    KERNEL: "our export in ONNX Runtime, with our library",
    ATTENTION: "self-attention of the same width, ONNX Runtime's fused op",
    MATMUL: "the floor: the model's own matrix products alone, in ONNX Runtime",
    TENSORRT: "our export as a TensorRT engine",
}
STREAM_BACKENDS: Final = {
    FUNCTION: "our stateful export in ONNX Runtime, without our library",
    KERNEL: "our stateful export in ONNX Runtime, with our library",
    ATTENTION: "attention in the mixers' place, every step copying its cache into a longer one, as exporters write it",
    ATTENTION_SHARED: "the same, ONNX Runtime's GroupQueryAttention, its cache written in place",
}
DEFAULT_TOKENS: Final = (256, 1024, 4096)
DEFAULT_BATCH: Final = (1,)
# Of a stream: tokens before the one that is timed.
DEFAULT_CONTEXTS: Final = (1, 128, 1024, 8192, 32768, 131072, 1048576)
# Beyond it no machine holds one row of anything.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class BenchOptions:
    """How a benchmark is run.

    Attributes:
        backends: names of `BACKENDS` or `STREAM_BACKENDS`; None: all that apply and are there.
        tokens: sequence lengths N; None: those that the model is fixed to, else 256, 1024 and 4096; of a stream
            `DEFAULT_CONTEXTS`.
        batch: batch sizes B; None: that which the model is fixed to, else 1.
        threads: of every backend, each pinned to a processor of its own; None: all that the process may use.
        effort: how long to time.
        seed: of random weights and inputs.
        memory: whether the peak memory of every backend is measured, each in a process of its own.
        roofline: whether the machine's own limits are measured.
        longest_run_s: a backend that would take longer for one run is left out.

    Raises:
        InputError: an option is out of range, or a backend is unknown.
    """

    backends: Sequence[str] | None = None
    tokens: Sequence[int] | None = None
    batch: Sequence[int] | None = None
    threads: int | None = None
    effort: Effort = field(default_factory=Effort)
    seed: int = 0
    memory: bool = True
    roofline: bool = True
    longest_run_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.backends or ():
            if name not in BACKENDS and name not in STREAM_BACKENDS:
                known = dict.fromkeys((*BACKENDS, *STREAM_BACKENDS))
                raise InputError(f"unknown backend {name!r}", f"Choose of {', '.join(known)}")
        for kind, values in (("tokens", self.tokens), ("batch", self.batch), ("backends", self.backends)):
            if values is not None and not values:
                raise InputError(f"{kind} is an empty list", "Name at least one")
            if values is not None and len(set(values)) < len(values):
                raise InputError(f"{kind} names one twice: {', '.join(map(str, values))}", "Name each once")
        for kind, sizes in (("tokens", self.tokens), ("batch", self.batch)):
            for size in sizes or ():
                if not 1 <= size <= _MOST:
                    raise InputError(f"{kind} must be 1 to {_MOST}, got {size}")
        _check_least("repeats", self.effort.repeats, 1)
        _check_least("warmup", self.effort.warmup, 0)
        _check_least("budget", self.effort.budget_s, 0)
        _check_least("seed", self.seed, 0)
        most = len(usable_processors())
        if self.threads is not None and not 1 <= self.threads <= most:
            raise InputError(
                f"threads must be 1 to {most}, got {self.threads}", "More than processors only wait for each other"
            )

    @property
    def thread_count(self) -> int:
        """How many threads every backend has."""
        return len(usable_processors()) if self.threads is None else self.threads


def _check_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise InputError(f"{name} must be at least {least}, got {value}")


def parse_sizes(text: str, option: str) -> tuple[int, ...]:
    """Return the sizes in a list such as "256,1024".

    Raises:
        InputError: it is no list of whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= len(str(_MOST)) for part in parts):
        raise InputError(f"{option} {text!r} is no list of sizes", f"Whole numbers from 1 on, such as {option} 1,256")
    return tuple(map(int, parts))
