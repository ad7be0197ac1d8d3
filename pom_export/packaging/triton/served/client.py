"""Send arrays to the model in Triton, over gRPC: pip install 'tritonclient[grpc]'.

    python client.py                                   # a trial with arrays of its own
    python client.py inputs.npz -o outputs.npz         # arrays by the names of inputs and outputs, with the batch axis

A model with a state gets one sequence, its tokens in pieces; without one, all goes in one request.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

SECONDS = 120


def arguments():
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="?", help="an .npz of inputs; default: arrays of the client's own")
    parser.add_argument("-o", "--output", help="an .npz for the outputs")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC address; default: %(default)s")
    parser.add_argument("--name", default=packaged_name(), help="the model's name; default: %(default)s")
    parser.add_argument("--sequence", type=int, default=1, help="the sequence's id, not 0; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=3, help="tokens in a piece; default: %(default)s")
    return parser.parse_args()


def packaged_name():
    """Return the model's name from the package's manifest."""
    manifest = Path(__file__).with_name("manifest.json")
    return json.loads(manifest.read_text())["serving"]["name"] if manifest.exists() else None


def trial_arrays(config):
    """Return an array for each input: ones of 8 by each dynamic axis."""
    batch = [1] if config.max_batch_size else []
    return {
        spec.name: np.ones(batch + [8 if size == -1 else size for size in spec.dims], dtype_of(spec))
        for spec in config.input
    }


def read_arrays(path, config):
    """Return the arrays of a file, one for each input."""
    with np.load(path) as archive:
        arrays = dict(archive)
    names = {spec.name for spec in config.input}
    if arrays.keys() != names or not all(array.size for array in arrays.values()):
        given = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise SystemExit(
            f"{path} holds {given or 'nothing'}, but the model takes {', '.join(sorted(names))}, not empty"
        )
    return arrays


def dtype_of(spec):
    """Return the NumPy type of an input."""
    from tritonclient.grpc import model_config_pb2

    return triton_to_np_dtype(model_config_pb2.DataType.Name(spec.data_type).removeprefix("TYPE_"))


def as_inputs(arrays):
    """Return arrays as the client library takes them."""
    inputs = []
    for name, array in arrays.items():
        given = triton.InferInput(name, array.shape, triton.np_to_triton_dtype(array.dtype))
        given.set_data_from_numpy(array)
        inputs.append(given)
    return inputs


def sequence(client, options, config, arrays):
    """Send one sequence in pieces, and return its outputs with all tokens together."""
    starts = range(0, next(iter(arrays.values())).shape[1], options.tokens)
    wanted = config.output[0].name
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    try:
        for start in starts:
            client.async_stream_infer(
                options.name,
                as_inputs({name: array[:, start : start + options.tokens].copy() for name, array in arrays.items()}),
                outputs=[triton.InferRequestedOutput(wanted)],
                sequence_id=options.sequence,
                sequence_start=start == 0,
                sequence_end=start == starts[-1],
            )
        pieces = [next_answer(answers).as_numpy(wanted) for _ in starts]
    finally:
        client.stop_stream(cancel_requests=True)
    return {wanted: np.concatenate(pieces, axis=1)}


def next_answer(answers):
    """Return the next answer of a stream, or raise its error."""
    result, error = answers.get(timeout=SECONDS)
    if error is not None:
        raise error
    return result


def single(client, options, config, arrays):
    """Send one request, and return its outputs."""
    result = client.infer(options.name, as_inputs(arrays))
    return {spec.name: result.as_numpy(spec.name) for spec in config.output}


def main():
    """Send the arrays, and print or save what comes back."""
    options = arguments()
    client = triton.InferenceServerClient(options.url)
    try:
        config = client.get_model_config(options.name).config
        arrays = read_arrays(options.inputs, config) if options.inputs else trial_arrays(config)
        send = sequence if config.HasField("sequence_batching") else single
        outputs = send(client, options, config, arrays)
    except InferenceServerException as error:
        raise SystemExit(f"the server at {options.url} answers: {error.message()}") from None
    for name, array in outputs.items():
        print(f"{name}: {array.dtype} {list(array.shape)}, from {array.min():.6g} to {array.max():.6g}")
    if options.output:
        np.savez(options.output, **outputs)


def run():
    """Call main, and end at once: after a cancelled stream, gRPC's threads sometimes keep Python from ending."""
    code = 0
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
