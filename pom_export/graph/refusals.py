"""Explain in one line why torch refuses a user's model: the reason, the operator, and the place in the model."""

from __future__ import annotations

import linecache
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import onnx_ir as ir
import onnxscript
import torch
from torch import nn

from pom_export.errors import InputError, reason_of
from pom_export.graph.outputs import TensorsOnly

_Node = torch.fx.Node | ir.Node

# Folders of code that is neither the user's own nor part of the user's model.
_LIBRARIES = tuple(
    f"{Path(folder)}/"
    for package in (sys.modules[__name__.partition(".")[0]], torch, onnxscript, ir)
    for folder in package.__path__
)  # fmt: skip
_STANDARD_LIBRARY = f"{Path(sysconfig.get_path('stdlib'))}/"
_INSTALLED = ("/site-packages/", "/dist-packages/")
_LONGEST_LINE = 80
# The scope that torch.export assigns to what belongs to no module.
_NO_MODULE = "_empty_nn_module_stack"
# Parts of torch's messages that do not help here: where to look, and torch's own symbols.
_TAIL = re.compile(r"\s*(See the stack trace|For more information|\(unhinted: |\(Size-like symbols|Error code 12).*")
# Phrases in torch's messages, what they mean for a user, and what to do.
_KNOWN = (
    (
        ("can't allocate memory", "MemoryError"),
        "there is not enough memory",
        "Give smaller examples, or use a larger machine",
    ),
    (
        (
            *("data-dependent", "unbacked symbol", "tensor with data dependent"),
            *("vmap over calling .item()", "batching operators that can support dynamic shape"),
        ),
        "what it does depends on the values of a tensor (an if on them, .item(), .tolist(), a selection by mask)",
        "Use torch.where or torch.cond, or compute it outside the model",
    ),
    (
        ("_assert_tensor_metadata",),
        "it converts a tensor to another type inside torch.vmap (.bool(), .float(), .to()), which torch can't trace",
        "Convert it before torch.vmap, or compute it from other operators, such as x != 0 for x.bool()",
    ),
    (("maximum recursion depth",), "it calls itself without end", "Look for a module that holds or calls itself"),
)


def refusal(what: str, error: BaseException, module: nn.Module, hint: str) -> InputError:
    """Return the error to raise for an exception that left torch or the user's model; raise it from that exception.

    Args:
        what: what could not be done.
        error: the exception.
        module: the model that ran or was traced.
        hint: what to do if no better advice is known.
    """
    errors = list(_causes(error))
    node = next(reversed(list(_nodes(errors))), None)
    place = _place(errors, node, module)
    if ours := next((each for each in errors if isinstance(each, InputError)), None):
        return InputError(f"{ours.what}{place}", ours.hint)
    reason, remedy = _reason(errors, node)
    return InputError(f"{what}: {reason}{place}", remedy or hint)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, the one that it was raised from, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _reason(errors: list[BaseException], node: _Node | None) -> tuple[str, str]:
    """Return the reason in one line, and the remedy if one is known."""
    for words, what, remedy in _KNOWN:
        if any(word in f"{type(error).__name__}: {error}" for error in errors for word in words):
            return what, remedy
    if node is None:
        return _first_sentence(errors[-1]), ""
    remedy = "Compute it from other operators, or outside the model"
    if any("No ONNX function found" in str(error) for error in errors):
        return f"ONNX has no operator for {_operator(node)}, and torch.onnx no translation", remedy
    return f"torch.onnx can't translate {_operator(node)} here: {_first_sentence(errors[-1])}", remedy


def _first_sentence(error: BaseException) -> str:
    text, kind = _TAIL.sub("", reason_of(error)).strip(), type(error).__name__
    return text if text and not isinstance(error, (KeyError, AssertionError)) else f"{kind} {text}".strip()


def _operator(node: _Node) -> str:
    return node.op_type if isinstance(node, ir.Node) else str(node.target).removesuffix(".default")


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _nodes(errors: list[BaseException]) -> Iterator[_Node]:
    """Yield the graph operators that were being processed when the exceptions arose."""
    for error in errors:
        for frame, _ in _frames(error):
            node = frame.f_locals.get("node")
            if isinstance(node, ir.Node) or (isinstance(node, torch.fx.Node) and node.op == "call_function"):
                yield node


def _place(errors: list[BaseException], node: _Node | None, module: nn.Module) -> str:
    """Return where in the user's model an exception arose, as far as it can be determined."""
    model = module.model if isinstance(module, TensorsOnly) else module
    parts = {id(part): (name, part) for name, part in model.named_modules() if name}
    inside, line = "", ""
    for error in errors:
        for frame, number in _frames(error):
            name, part = parts.get(id(frame.f_locals.get("self")), ("", None))
            inside = f", in {name} ({type(part).__name__})" if name else inside
            line = line_of(frame.f_code.co_filename, number) or line
    return inside + line if node is None else place_of(node)


def place_of(node: torch.fx.Node | ir.Node) -> str:
    """Return where an operator was traced from, for the end of a message: module, and line of the user's code."""
    fx = node if isinstance(node, torch.fx.Node) else node.meta.get("node")
    if fx is None:
        return ""
    path, kind = next(reversed((fx.meta.get("nn_module_stack") or {"": ("", "")}).values()))
    if _NO_MODULE in str(path):
        return ""
    name = str(path).removeprefix("model").removeprefix(".")
    kind = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
    calls = re.findall(r'File "([^"]+)", line (\d+)', fx.meta.get("stack_trace") or "")
    lines = [line for file, number in calls if (line := line_of(file, int(number)))]
    return (f", in {name} ({kind})" if name else "") + (lines[-1] if lines else "")


def line_of(file: str, number: int) -> str:
    """Return a line of the user's code for the end of a message; "" for a library's code."""
    if file.startswith(_LIBRARIES) or file.startswith("<"):
        return ""
    if file.startswith(_STANDARD_LIBRARY) and not any(folder in file for folder in _INSTALLED):
        return ""
    text = linecache.getline(file, number).strip()
    shown = f": {text}" if text and len(text) <= _LONGEST_LINE else ""
    return f", {Path(file).name} line {number}{shown}"
