"""Operators of ONNX Runtime's own domain, which its optimizer puts in place of standard ones."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]
_DOMAIN: Final = "com.microsoft"
_erf: Final = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    """Return x/2 (1 + erf(x / sqrt 2))."""
    return x * 0.5 * (1 + _erf(x * 0.5**0.5))


def gelu_by_tanh(x: Array) -> Array:
    """Return GELU's approximation by tanh."""
    return x * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


class Erf(OpRun):
    """Erf, also of nothing."""

    def _run(self, x: Array) -> tuple[Array]:
        return (_erf(x) if x.size else x,)


class _StandardGelu(OpRun):
    """The standard Gelu."""

    op_domain = ""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        return (gelu_by_tanh(x) if approximate == "tanh" else gelu(x),)


class Gelu(OpRun):
    """Gelu with erf."""

    op_domain = _DOMAIN

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:  # noqa: ARG002 (of the standard one)
        return (gelu(x),)


class BiasGelu(OpRun):
    """Gelu with erf, of a sum."""

    op_domain = _DOMAIN

    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        return (gelu(x + bias),)


class FastGelu(OpRun):
    """Gelu by tanh, of a sum."""

    op_domain = _DOMAIN

    def _run(self, x: Array, bias: Array | None = None) -> tuple[Array]:
        return (gelu_by_tanh(x if bias is None else x + bias),)


class QuickGelu(OpRun):
    """x * sigmoid(alpha x)."""

    op_domain = _DOMAIN

    def _run(self, x: Array, alpha: float = 1.702) -> tuple[Array]:
        return (x / (1 + np.exp(-alpha * x)),)


class FusedMatMul(OpRun):
    """MatMul with a factor and transposed operands."""

    op_domain = _DOMAIN

    def _run(  # the operator's attributes
        self,
        a: Array,
        b: Array,
        alpha: float = 1.0,
        transA: int = 0,  # noqa: N803
        transB: int = 0,  # noqa: N803
        transBatchA: int = 0,  # noqa: N803
        transBatchB: int = 0,  # noqa: N803
    ) -> tuple[Array]:
        if transBatchA or transBatchB:
            raise NotImplementedError
        a = np.swapaxes(a, -1, -2) if transA else a
        b = np.swapaxes(b, -1, -2) if transB else b
        return (np.matmul(a, b) * alpha,)


# onnx finds an implementation by the name of its class.
_StandardGelu.__name__ = Gelu.__name__
OPS: Final = (Erf, _StandardGelu, Gelu, BiasGelu, FastGelu, QuickGelu, FusedMatMul)
