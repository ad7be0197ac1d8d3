"""Run this package's model: pip install 'openvino>=2026.4'.

    python client.py                                   # a trial with the arrays that came with the package
    python client.py inputs.npz -o outputs.npz         # arrays by the names of inputs and outputs
    python client.py inputs.npz --tokens 3             # in calls of 3 tokens, of a model that keeps a state

A model with a state gets all of its tokens in one request, which keeps the state.
"""

from __future__ import annotations

import argparse

import numpy as np
from loading import load
from package_files import HERE, read_manifest


def arguments():
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="?", help="an .npz of inputs; default: the first that came with the package")
    parser.add_argument("-o", "--output", help="an .npz for the outputs")
    parser.add_argument("--tokens", type=int, default=2048, help="the most tokens of a call; default: %(default)s")
    return parser.parse_args()


def read_arrays(file):
    """Return the inputs by name."""
    prefix = "" if file else "0/0/in/"
    with np.load(file or HERE / "trial.npz") as archive:
        return {name.removeprefix(prefix): archive[name] for name in archive.files if name.startswith(prefix)}


def check(arrays, tokens, serving):
    """Refuse what OpenVINO would compute wrongly without an error."""
    for name, counts in serving["values"].items():
        array = arrays.get(name)
        if array is not None and array.size and ((array < 0) | (array >= np.array(counts))).any():
            raise SystemExit(
                f"{name} has values from {array.min()} to {array.max()}, but must be from 0 and below {counts}"
            )
    most = serving["most_tokens"]
    if tokens is not None and most is not None and arrays[tokens].shape[1] > most:
        raise SystemExit(f"{arrays[tokens].shape[1]} tokens are more than the model's {most} positions")


def pieces(arrays, tokens, most):
    """Yield the inputs of each call."""
    if tokens is None:
        yield arrays
        return
    for start in range(0, arrays[tokens].shape[1], most):
        yield {name: np.ascontiguousarray(array[:, start : start + most]) for name, array in arrays.items()}


def main():
    """Run the model, and print or save the outputs."""
    options = arguments()
    serving = read_manifest()["serving"]
    tokens = serving["tokens"]
    arrays = read_arrays(options.inputs)
    if tokens is not None and tokens not in arrays:
        raise SystemExit(f"{options.inputs} lacks {tokens}: it has {', '.join(arrays)}")
    check(arrays, tokens, serving)
    request = load().create_infer_request()
    calls = []
    for feed in pieces(arrays, tokens, max(1, options.tokens)):
        results = request.infer(feed)
        calls.append({port.get_any_name(): np.array(results[port]) for port in request.model_outputs})
    outputs = calls[0] if tokens is None else {n: np.concatenate([call[n] for call in calls], axis=1) for n in calls[0]}
    for name, array in outputs.items():
        print(f"{name}: {array.dtype} {list(array.shape)}, from {array.min():.6g} to {array.max():.6g}")
    if options.output:
        np.savez(options.output, **outputs)


if __name__ == "__main__":
    main()
