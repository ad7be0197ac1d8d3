"""Run models of one node in ONNX Runtime: run_sessions.py LIBRARY FOLDER reads N.onnx and N.npz, and writes N.made.npz.

It imports nothing else, since the address sanitizer, loaded before Python, slows down every import.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(library: str, folder: Path) -> None:
    """Run every model in the folder."""
    for model in sorted(folder.glob("*.onnx")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        with np.load(model.with_suffix(".npz")) as feeds:
            outputs = session.run(None, dict(feeds))
        np.savez(model.with_suffix(".made.npz"), *outputs)


main(sys.argv[1], Path(sys.argv[2]))
