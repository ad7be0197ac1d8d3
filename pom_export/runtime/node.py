"""Run a model in ONNX Runtime's packages for JavaScript, in a process of Node."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, MissingDependencyError
from pom_export.graph.exported_model import ExportedModel

_SCRIPT: Final = Path(__file__).with_name("node_session.cjs")
_FOLDER: Final = "node_modules"


def find_package(name: str) -> Path:
    """Return the folder of an npm package, looked for as Node does: in node_modules here and in the folders above.

    Raises:
        MissingDependencyError: Node or the package is not installed.
    """
    hint = f"Install it here: npm install {name}"
    if shutil.which("node") is None:
        raise MissingDependencyError(f"{name} needs Node, and there is no node on the PATH", "Install Node 18 or newer")
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / _FOLDER / name / "package.json").is_file():
            return folder / _FOLDER / name
    raise MissingDependencyError(f"{name} is not in {here / _FOLDER}, nor in that of a folder above", hint)


def package_version(folder: Path) -> str:
    """Return the version of an npm package."""
    return str(json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"])


class NodeRunner:
    """A model in onnxruntime-web, which runs WebAssembly, or in onnxruntime-node.

    Args:
        package: the package's name, "onnxruntime-web" or "onnxruntime-node".
        model: the file.

    Attributes:
        name: name of the runner in messages.
    """

    def __init__(self, package: str, model: ExportedModel) -> None:
        self.name = package
        self._model = model
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> NodeRunner:
        """Start Node and load the model.

        Raises:
            InputError: the package cannot load it.
            MissingDependencyError: Node or the package is not installed.
        """
        arguments = [find_package(self.name), self._model.path, *self._model.weights]
        self._process = subprocess.Popen(
            ["node", str(_SCRIPT), *(str(path.resolve()) for path in arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name.

        Raises:
            InputError: the package cannot run the model.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({name: _encoded(array) for name, array in feed.items()}) + "\n")
        self._process.stdin.flush()
        return {name: _decoded(value) for name, value in self._answer().items()}

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError(f"Node ended with code {self._process.wait()} while it ran {self.name}", "Try less data")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer and not isinstance(answer["error"], dict):
            raise InputError(
                f"{self.name} cannot run {self._model.path.name}: {answer['error']}", "Inline the file first"
            )
        return answer


def _encoded(array: npt.NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"type": array.dtype.name, "dims": list(array.shape), "data": data}


def _decoded(value: Mapping[str, Any]) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["type"])).reshape(value["dims"])
