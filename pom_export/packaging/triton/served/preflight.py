"""Check this package where it will be served, before the server is started.

    env/bin/python preflight.py

Run it with the Python that serves the model: that of the environment which config.pbtxt names, for the Python backend;
any Python otherwise. The exit code is 1 if something is wrong.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

from package_files import HERE, faults_of_files, read_manifest


def faults_of_environment(model):
    """Return what pom-export's doctor finds in this Python's environment."""
    try:
        import numpy
    except ImportError:
        return [f"numpy is not installed for {sys.executable}"]
    if int(numpy.__version__.split(".")[0]) > 1:
        return [
            f"NumPy {numpy.__version__}, with which Triton's Python backend gives wrong numbers without an error: "
            f"{sys.executable} -m pip install 'numpy<2'"
        ]
    command = [sys.executable, "-m", "pom_export", "doctor", "--triton", sys.prefix, model, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        return [f"pom-export doctor cannot be run: {done.stderr.strip().splitlines()[-1:]}"]
    served = ("numpy", "onnx", "onnxruntime", "op", "triton", model)
    found = [each for each in json.loads(done.stdout)["findings"] if each["name"] in served]
    for each in found:
        print(f"{each['name']}: {each['state']}, {each['detail']}")
    return [f"{each['name']}: {each['remedy']}" for each in found if each["state"] != "ok"]


def faults_of_library(library):
    """Return why a library cannot be loaded here."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return [f"{library} cannot be loaded: {error}"]
    return []


def main():
    """Print what was found, and return the exit code."""
    manifest = read_manifest()
    serving = manifest["serving"]
    faults = faults_of_files(manifest)
    if not faults and serving["backend"] == "python":
        faults = faults_of_environment(str(HERE / "models" / serving["name"] / "1" / "model.onnx"))
    for library in serving.get("libraries", []):
        faults += faults_of_library(str(HERE / library))
    for fault in faults:
        print(f"preflight: {fault}", file=sys.stderr)
    if not faults:
        print(f"preflight: {len(manifest['files'])} files as packaged, and nothing wrong here")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
