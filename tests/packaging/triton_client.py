"""A program that sends sequences to Triton, in turns, by one of its protocols.

    python triton_client.py PROTOCOL PORT PLAN.json ANSWERS.json

PROTOCOL is http, grpc or stream. PLAN has "model", "input", "output" and "requests": each a "sequence", "tokens",
"start" and "end". Requests of `stream` are sent without waiting for answers, those of http and grpc with a thread for
each sequence, so that they meet in the server. ANSWERS has for each request the output as nested lists, or the text of
the error.
"""

from __future__ import annotations

import json
import queue
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tritonclient.utils import InferenceServerException

SECONDS = 60


def sent(module, plan, request):
    """Return the arguments of a request."""
    tokens = np.array([request["tokens"]], request.get("dtype", "int64"))
    given = module.InferInput(plan["input"], tokens.shape, "INT64" if tokens.dtype == np.int64 else "FP32")
    given.set_data_from_numpy(tokens)
    return {
        "model_name": plan["model"],
        "inputs": [given],
        "outputs": [module.InferRequestedOutput(plan["output"])],
        "sequence_id": request["sequence"],
        "sequence_start": request["start"],
        "sequence_end": request["end"],
    }


def in_turns(module, url, plan):
    """Send the requests of each sequence one after the other, all sequences at once."""
    places = {}
    for place, request in enumerate(plan["requests"]):
        places.setdefault(request["sequence"], []).append(place)

    def run(sequence):
        client = module.InferenceServerClient(url)
        answers = {}
        for place in places[sequence]:
            try:
                result = client.infer(**sent(module, plan, plan["requests"][place]))
                answers[place] = result.as_numpy(plan["output"])[0].tolist()
            except InferenceServerException as error:
                answers[place] = error.message()
        client.close()
        return answers

    with ThreadPoolExecutor(len(places)) as pool:
        found = {place: answer for answers in pool.map(run, places) for place, answer in answers.items()}
    return [found[place] for place in range(len(plan["requests"]))]


def in_a_stream(module, url, plan):
    """Send all requests at once."""
    client, got = module.InferenceServerClient(url), queue.Queue()
    client.start_stream(callback=lambda result, error: got.put((result, error)))
    for place, request in enumerate(plan["requests"]):
        client.async_stream_infer(**sent(module, plan, request), request_id=str(place))
    answers = [None] * len(plan["requests"])
    for _ in answers:
        result, error = got.get(timeout=SECONDS)
        if error is not None:
            raise SystemExit(f"an error names no request in a stream: {error}")
        answers[int(result.get_response().id)] = result.as_numpy(plan["output"])[0].tolist()
    client.stop_stream()
    return answers


def main(protocol, port, plan, answers):
    """Send the plan's requests and write the answers."""
    if protocol == "http":
        import tritonclient.http as module
    else:
        import tritonclient.grpc as module
    send = in_a_stream if protocol == "stream" else in_turns
    found = send(module, f"127.0.0.1:{port}", json.loads(Path(plan).read_text()))
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
