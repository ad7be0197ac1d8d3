"""Measure the error that quantizing causes in each module."""

from __future__ import annotations

from collections.abc import Mapping

from pom_export.debugging.two_files import walk_files
from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.parity.case import Case
from pom_export.quantization.report import QuantizedModule


def errors_of_modules(
    quantized: ExportedModel,
    original: ExportedModel,
    case: Case,
    types: Mapping[str, str],
    errors: Mapping[str, float],
) -> tuple[list[QuantizedModule], list[str]]:
    """Return the modules whose own products are quantized, and notes on what could not be measured.

    Args:
        quantized: the file.
        original: the file that it was made from.
        case: the inputs.
        types: the types of the products' weights, by the products' names, in order.
        errors: the errors of those that are quantized alone, by the same names.
    """
    products: dict[str, list[str]] = {}
    for name in types:
        products.setdefault(name.partition("/")[0] if "/" in name else "", []).append(name)
    try:
        located = walk_files(quantized, original, [case], {}, quantized.precision, rtol=None, progress=lambda _: None)
    except InputError as problem:
        out: dict[str, float | None] = {}
        notes = [f"how far modules' outputs are from the original's is not known: {problem.what}"]
    else:
        out = {each.name: each.error_out for each in located.runs[0].modules}
        notes = []
    modules = []
    for module, names in products.items():
        used = dict.fromkeys(types[name] for name in names)
        error = max(errors.get(name, 0.0) for name in names)
        modules.append(QuantizedModule(module, "+".join(used), error, out.get(module or "the model")))
    return modules, notes
