"""Load this package's model with its settings: pip install 'openvino>=2026.4'."""

from __future__ import annotations

import json
from pathlib import Path

import openvino

HERE = Path(__file__).resolve().parent


def load(device="CPU"):
    """Return the compiled model, which computes in float32.

    Raises:
        RuntimeError: the device computes in another type.
    """
    settings = json.loads((HERE / "config.json").read_text())[device]
    compiled = openvino.Core().compile_model(HERE / "model.xml", device, settings)
    kind = compiled.get_property("INFERENCE_PRECISION_HINT")
    if kind != openvino.Type.f32:
        raise RuntimeError(f"{device} computes in {kind.to_string()}, with which the outputs are wrong by percents")
    return compiled
