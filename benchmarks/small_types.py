"""Measure what products of small types cost the demo's language model, and what TensorRT for RTX makes of them.

    python -m benchmarks.small_types [--targets sm120] [--save FOLDER] [--compare FILE.onnx ...]

The text is the documentation in CPython's `pydoc_data`: scales are chosen on what the model was trained on, and what
each file loses is measured on 32,768 bytes of the last tenth, which it was not. ONNX Runtime runs the files on the CPU,
so no GPU is needed; an engine rounds in other places. `--save` keeps the files, and the inputs for calibration as
`calibration.npz` for other tools, whose files `--compare` then measures in the same way. Nothing is timed.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

import pom_export
from pom_export.engine.backend import TENSORRT_RTX
from pom_export.errors import MissingDependencyError
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.graph.passes.claim_least import ClaimLeastPass
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import PRODUCTS_OF, FloatProduct, float_products
from pom_export.graph.quantized.scaled import write_scaled_product
from pom_export.graph.saving import save_model
from pom_export.parity.case import Array
from pom_export.quantization.activations import METHODS, activation_scales
from pom_export.quantization.data import IDS, Data
from pom_export.quantization.for_tensorrt import fits, kept_by_default, rounded_weight
from pom_export.quantization.quality import Judge, Quality
from pom_export.quantization.trials import Trials, runner_of
from pom_export.runtime.session import inference_session

CHECKPOINT = Path(__file__).parents[1] / "samples" / "checkpoints" / "byte_lm.safetensors"
LENGTH, CALIBRATION_ROWS, HELD_OUT_ROWS = 512, 32, 64
# Rows of one call.
ROWS = 8


@dataclass(frozen=True)
class Form:
    """How a file's products are quantized.

    Attributes:
        name: of its row and its file.
        weights: the type of the weights.
        activations: that of the activations; None: they stay in float.
        method: how scales of activations are chosen; None: as by default.
        keeps: whether products of aggregates stay in float.
        searched: whether weights are rounded for what they are multiplied by, or each to the nearest.
        dtype: of everything else.
    """

    name: str
    weights: str
    activations: str | None = None
    method: str | None = None
    keeps: bool = False
    searched: bool = True
    dtype: str = "float32"


FORMS = (
    Form("int8", "int8", "int8", keeps=True),
    *(Form(f"int8, {method}", "int8", "int8", method, keeps=True) for method in METHODS),
    Form("int8, all products", "int8", "int8"),
    Form("fp8", "fp8", "fp8"),
    *(Form(f"fp8, {method}", "fp8", "fp8", method) for method in METHODS if method != "maximum"),
    Form("fp8, not of aggregates", "fp8", "fp8", keeps=True),
    Form("int4 weights", "int4"),
    Form("int4 weights, to the nearest", "int4", searched=False),
    Form("int8 weights", "int8"),
    Form("fp8 weights", "fp8"),
    Form("int8, others float16", "int8", "int8", keeps=True, dtype="float16"),
    Form("fp8, others float16", "fp8", "fp8", dtype="float16"),
    Form("int4 weights, others float16", "int4", dtype="float16"),
)


def text_data() -> Data:
    """Return the text's bytes in calls, input_ids (8, 513), of what the model was trained on and of what not."""
    text = "\n\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items())).encode()
    ids = np.frombuffer(text, np.uint8).astype(np.int64)
    trained = len(ids) * 9 // 10
    parts = zip((0, trained), (trained, len(ids)), (CALIBRATION_ROWS, HELD_OUT_ROWS), strict=True)
    calls = []
    for start, stop, count in parts:
        places = np.linspace(start, stop - LENGTH - 1, count).astype(int)
        rows = np.stack([ids[place : place + LENGTH + 1] for place in places])
        calls.append([{IDS: rows[i : i + ROWS]} for i in range(0, count, ROWS)])
    return Data(calls[0], calls[1], "pydoc_data.topics", is_text=True)


def write(form: Form, model: ExportedModel, weights: dict[str, QuantizedWeight], data: Data, path: Path) -> None:
    """Write a copy of a file in a form."""
    graph = ir.load(model.path)
    products = float_products(graph, PRODUCTS_OF)
    kept = kept_by_default(products, "int8") if form.keeps else []
    scales = {}
    if form.activations is not None:
        inputs = [product.input for product in products]
        scales = activation_scales(model.path, inputs, data.calibration, form.activations, form.method)
    for product in products:
        if product.name not in kept and fits(product.shape, form.weights):
            weight = weights.get(product.name) or rounded_weight(product.matrix(), form.weights)
            write_scaled_product(graph, product, weight, scales.get(product.input), shared=True)
    ClaimLeastPass()(graph)
    save_model(graph, path)


def searched_weights(original: ExportedModel, data: Data) -> dict[str, dict[str, QuantizedWeight]]:
    """Return the weights of each type by product."""
    found: dict[str, dict[str, QuantizedWeight]] = {kind: {} for kind in ("int8", "fp8", "int4")}

    def use(product: FloatProduct, moments: Array) -> None:
        for kind, weights in found.items():
            weights[product.name] = rounded_weight(product.matrix(), kind, moments)

    with Trials(original) as trials:
        trials.moments(trials.products, data.calibration, use)
    return found


def engine_line(model: Path, folder: Path, targets: Sequence[str]) -> str:
    """Return the types that an engine's products multiply; TensorRT for RTX builds it without a GPU."""
    try:
        info = pom_export.build_engine(model, folder / "m.engine", backend=TENSORRT_RTX, targets=targets)
    except MissingDependencyError as error:
        return f"not built: {error.what}"
    lost = f"; {len(info.not_as_asked)} not as asked" if info.not_as_asked else ""
    return ", ".join(f"{kind}: {count}" for kind, count in (info.engine_products or {}).items()) + lost


def files(folder: Path, data: Data) -> Iterator[tuple[str, Path]]:
    """Write the files of all forms, and yield each with its name; the first is the original."""
    originals = {}
    for dtype in ("float32", "float16"):
        path = folder / f"{dtype}.onnx"
        pom_export.export(CHECKPOINT, path, dtype=dtype)
        originals[dtype] = read_model(path)
        yield dtype, path
    weights = searched_weights(originals["float32"], data)
    for form in FORMS:
        path = folder / f"{form.name.replace(', ', '_').replace(' ', '_')}.onnx"
        write(form, originals[form.dtype], weights[form.weights] if form.searched else {}, data, path)
        yield form.name, path


def row(name: str, path: Path, quality: Quality, engine: str) -> str:
    """Return a line of the table."""
    assert quality.original is not None
    assert quality.quantized is not None
    loss = quality.quantized - quality.original
    size = path.stat().st_size / 2**20
    shares = f"{quality.agreement:.3f} | {quality.rms_error:.4f}"
    return f"| {name} | {size:.2f} | {quality.quantized:.4f} | {loss:+.4f} | {shares} | {engine} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="sm120", help="what engines are built for (default: sm120)")
    parser.add_argument("--save", type=Path, help="keep the files in this folder")
    parser.add_argument(
        "--compare", type=Path, nargs="*", default=[], help="files that other tools made of float32.onnx"
    )
    options = parser.parse_args()
    data = text_data()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = options.save or scratch
        folder.mkdir(exist_ok=True)
        if options.save:
            np.savez(folder / "calibration.npz", input_ids=np.concatenate([call[IDS] for call in data.calibration]))
        print("| products | MiB | bits a byte | loss | same best token | error of logits | in the engine |")
        print("|---|---|---|---|---|---|---|")
        judge = None
        for name, path in [*files(folder, data), *((path.stem, path) for path in options.compare)]:
            run = runner_of(inference_session(path))
            judge = judge or Judge(read_model(path), run, data, data.held_out)
            engine = engine_line(path, scratch, options.targets.split(","))
            print(row(name, path, judge.quality(run), engine), flush=True)


if __name__ == "__main__":
    main()
