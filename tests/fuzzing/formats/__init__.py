"""One module per kind of file: `make` writes a hostile file and names the command that reads it."""

from __future__ import annotations

from tests.fuzzing.cases import Make
from tests.fuzzing.formats import (
    averages,
    checkpoint,
    folder,
    manifest,
    model,
    npz,
    pt2,
    quantized,
    safetensors,
    tokenizer,
    valid,
)

FORMATS: dict[str, Make] = {
    "averages": averages.make,
    "checkpoint": checkpoint.make,
    "folder": folder.make,
    "inputs": npz.make_inputs,
    "legacy": checkpoint.make_legacy,
    "manifest": manifest.make,
    "onnx": model.make,
    "parity": npz.make_parity,
    "pt2": pt2.make,
    "quantized": quantized.make,
    "safetensors": safetensors.make,
    "state": npz.make_state,
    "tokenizer": tokenizer.make,
    "valid": valid.make,
}
