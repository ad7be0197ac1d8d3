"""What Triton's Python backend runs: a file of pom-export, its sequences through one StreamPool.

The interface is that of config.pbtxt beside the folder of this file. EXECUTION_ENV_PATH there names the environment,
which has pom-export, onnxruntime and a NumPy that this server exchanges arrays with.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


def check_exchange():
    """Refuse to load if arrays do not survive the way through the server.

    With NumPy 2, the Python backend of the server 2.51, for one, repeats the first element of every input, and says
    nothing.
    """
    sent = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    got = pb_utils.Tensor.from_dlpack("trial", pb_utils.Tensor("trial", sent).to_dlpack()).as_numpy()
    if not np.array_equal(sent, got):
        raise pb_utils.TritonModelException(
            f"NumPy {np.__version__} exchanges wrong numbers with this server. In the environment that "
            "EXECUTION_ENV_PATH names: pip install 'numpy<2'"
        )


class TritonPythonModel:
    """A model of pom-export in Triton."""

    def initialize(self, args):
        """Load the file beside this one."""
        check_exchange()
        from pom_export.errors import PomExportError

        config = json.loads(args["model_config"])
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        try:
            self._load(file, config)
        except PomExportError as error:
            raise pb_utils.TritonModelException(f"{error.what}. {error.hint}") from None

    def _load(self, file, config):
        if "sequence_batching" in config:
            from pom_export.packaging.triton.readers import reader_of
            from pom_export.runtime.streaming.interface import read_stateful

            interface = read_stateful(file)
            most = int(config["sequence_batching"]["oldest"]["max_candidate_sequences"])
            self._sequences = reader_of(interface, most)
            self._tokens = interface.tokens.name
        else:
            from pom_export.graph.exported_model import read_model
            from pom_export.packaging.triton.batches import Batches
            from pom_export.runtime.session import inference_session

            self._sequences = None
            self._batches = Batches(inference_session(file), read_model(file))
            self._inputs = [each["name"] for each in config["input"]]
        self._outputs = [each["name"] for each in config["output"]]

    def execute(self, requests):
        """Answer requests: those of sequences, or those of a model without a state."""
        answers = self._execute_sequences(requests) if self._sequences else self._execute_batches(requests)
        return [
            pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{answer.what}. {answer.hint}"))
            if isinstance(answer, Exception)
            else pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in answer.items()])
            for answer in answers
        ]

    def _execute_sequences(self, requests):
        from pom_export.packaging.triton.open_sequences import Piece

        every, last = self._outputs
        pieces = [
            Piece(
                sequence=_value(request, "CORRID"),
                tokens=_input(request, self._tokens),
                start=bool(_value(request, "START")),
                end=bool(_value(request, "END")),
                every=every in request.requested_output_names(),
            )
            for request in requests
        ]
        answers = []
        for piece, answer in zip(pieces, self._sequences.read(pieces), strict=True):
            if isinstance(answer, Exception):
                answers.append(answer)
            elif piece.every:
                answers.append({every: answer[np.newaxis], last: answer[-1:]})
            else:
                answers.append({last: answer[np.newaxis]})
        return answers

    def _execute_batches(self, requests):
        arrays = [{name: _input(request, name) for name in self._inputs} for request in requests]
        return self._batches.run(arrays, self._outputs)


def _input(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _value(request, name):
    return _input(request, name).ravel()[0].item()
