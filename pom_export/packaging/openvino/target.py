"""Packages for OpenVINO: a folder with the model as .xml and .bin, and with its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import numpy as np

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.loading import load_graph
from pom_export.graph.quantized.reading import BLOCKS, TENSOR, quantized_products
from pom_export.graph.quantized.unrounded import unrounded
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.openvino.conversion import converted
from pom_export.packaging.openvino.trial import as_arrays, check, trials_of
from pom_export.packaging.readme import interface_table, readme
from pom_export.packaging.targets import Contents, PackageOptions, Progress, Target
from pom_export.parity.tolerances import MODELS
from pom_export.runtime.openvino import GROUP, HINT, SINGLE, check_openvino, in_one_line
from pom_export.runtime.streaming.interface import MASK, StatefulModel, stateful_interface

_SERVED: Final = Path(__file__).parent / "served"
_PROGRAMS: Final = ("client.py", "loading.py", "preflight.py")
_COMMAND: Final = "python client.py"
_MODEL: Final = "model.xml"
# What run.md has in place of the settings.
_SETTINGS: Final = "SETTINGS"
_IN_FLOAT32: Final = "activations are in float32 in the package, and in ONNX Runtime the file rounds them to 8 bits"
_NAMES: Final = {"tokens": "the next tokens of each row", MASK: "which of them count; padding comes last"}


def _write(folder: PackageFolder, file: ExportedModel, _: PackageOptions, progress: Progress) -> Contents:
    stateful = stateful_interface(file) if file.stateful else None
    _check_fits(file, stateful)
    check_openvino()
    import openvino

    rounding = _rounding(file)
    progress("running the original in ONNX Runtime")
    # OpenVINO rounds activations otherwise: the package does not.
    with unrounded(file) if BLOCKS in rounding else nullcontext(file) as exact:
        its_state = stateful and stateful_interface(exact)
        trials = trials_of(exact, its_state)
        progress("converting")
        model = converted(exact, its_state)
    path = folder.place(_MODEL)
    with in_one_line("OpenVINO"):
        openvino.save_model(model, path, compress_to_fp16=False)
    progress("comparing in OpenVINO")
    checked = check(path, file.precision, trials)
    settings = {device: {HINT: SINGLE} | ({GROUP: 0} if rounding else {}) for device in ("CPU", "GPU")}
    folder.write("config.json", json.dumps(settings, indent=2) + "\n")
    np.savez_compressed(folder.place("trial.npz"), **as_arrays(trials))  # type: ignore[arg-type]
    notes = [_IN_FLOAT32] if BLOCKS in rounding else []
    folder.copy_programs(_SERVED, *_PROGRAMS)
    folder.write("README.md", _readme(file, stateful, settings["CPU"]))
    bound = MODELS[file.precision]
    serving = {
        "tokens": stateful.tokens.name if stateful is not None else None,
        "values": {name: list(counts) for name, counts in file.limits.values.items()},
        "most_tokens": file.limits.tokens,
        "tolerance": {"relative": bound.relative, "absolute": bound.absolute},
    }
    return Contents(_COMMAND, checked, serving, notes=notes)


def _check_fits(file: ExportedModel, stateful: StatefulModel | None) -> None:
    """Raise InputError for a model that such a package cannot hold."""
    if any(spec.dtype.name == "bfloat16" for spec in (*file.inputs, *file.outputs)):
        raise InputError(
            f"{file.path.name} has inputs or outputs in bfloat16, which NumPy lacks",
            'Export it with `dtype="float32"`: OpenVINO computes in that',
        )
    if stateful is not None and stateful.others:
        raise InputError(
            f"{file.path.name} keeps a state and has the input {next(iter(stateful.others))}, which cannot be checked",
            "Package it for another server, such as triton",
        )


def _rounding(file: ExportedModel) -> set[str]:
    """Return how a file's quantized products round their activations; empty if it has none.

    Raises:
        InputError: OpenVINO would compute something else.
    """
    found = {product.activations for product in quantized_products(load_graph(file.path))}
    if TENSOR in found:
        raise InputError(
            f"{file.path.name} rounds activations with one scale per call, which OpenVINO does otherwise",
            "Quantize the original for decode or both, whose weights are in blocks",
        )
    return found


def _readme(file: ExportedModel, stateful: StatefulModel | None, settings: Mapping[str, object]) -> str:
    names = {spec.name: "input" for spec in file.inputs} | {spec.name: "output" for spec in file.outputs}
    if stateful is not None:
        names = {stateful.tokens.name: _NAMES["tokens"], MASK: _NAMES[MASK], stateful.output.name: "for each of them"}
    kind = "stream" if stateful is not None else "model"
    texts = {name: (_SERVED.parent / f"{name}.md").read_text(encoding="utf-8") for name in ("run", kind)}
    return readme(
        f"{file.path.stem} for OpenVINO",
        file,
        {
            "Run it": texts["run"].replace(_SETTINGS, json.dumps(dict(settings))),
            "Inputs and outputs": f"{interface_table(file, names)}\n\n{_limits(file)}{texts[kind]}",
        },
    )


def _limits(file: ExportedModel) -> str:
    """Return a paragraph about the inputs' limits; empty if there are none."""
    values = [f"`{name}` is from 0 to {max(counts) - 1}" for name, counts in file.limits.values.items()]
    tokens = [] if file.limits.tokens is None else [f"there are at most {file.limits.tokens} tokens in a row"]
    if not values and not tokens:
        return ""
    return (
        f"OpenVINO does not check inputs, and gives wrong outputs beyond the limits: {', '.join(values + tokens)}.\n\n"
    )


TARGET: Final = Target(takes=frozenset(), write=_write)
