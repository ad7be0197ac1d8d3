"""The trials of a checkup. Each runs in a process of its own and returns a line, or raises what it found.

Raises, everywhere: NotInstalledError, BrokenError, or whatever a broken library raises.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from pom_export import contract
from pom_export.checkup.findings import BrokenError, NotInstalledError, about_to
from pom_export.checkup.versions import is_older, oldest, requirement
from pom_export.errors import InputError, MissingDependencyError, reason_of

# Modules whose names are not those of their packages.
_MODULES: Final = {"onnx-ir": "onnx_ir", "scikit-learn": "sklearn"}
# Packages that provide the module onnxruntime.
_ONNXRUNTIMES: Final = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-training"),
    *("ort-nightly", "ort-nightly-gpu"),
)
_TOLERANCE: Final = 1e-5
_OLDEST_CHIP: Final = 75


def package(name: str) -> str:
    """Import a package and compare its version with the oldest that is accepted."""
    module = _imported(_MODULES.get(name, name), name)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = str(getattr(module, "__version__", ""))
    return _accepted(name, version)


def torch() -> str:
    """Import torch and compute with it."""
    version = package("torch")
    import torch

    if float((torch.ones(2) @ torch.ones(2)).item()) != 2:
        raise BrokenError("torch gives wrong numbers", "pip install --force-reinstall torch")
    return f"{version}{'' if torch.cuda.is_available() else ', CPU only'}"


def _imported(module: str, package_name: str) -> Any:
    if not _is_there(module):
        raise NotInstalledError(f"there is no module {module}")
    about_to(f"import {module}")
    try:
        return importlib.import_module(module)
    except Exception as error:
        again = f"pip install --force-reinstall {requirement(package_name)}"
        raise BrokenError(f"it cannot be imported: {type(error).__name__}: {reason_of(error)}", again) from error


def _is_there(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None  # any folder of that name is a module without origin


def _accepted(name: str, version: str) -> str:
    least = oldest(name)
    if is_older(version, least):
        raise BrokenError(f"version {version} is older than {least}", f"pip install {requirement(name)}")
    return version


def onnxruntime() -> str:
    """Import ONNX Runtime and compare its version; several packages that provide it overwrite each other."""
    module = _imported("onnxruntime", "onnxruntime")
    installed = {name: metadata.version(name) for name in _ONNXRUNTIMES if _is_installed(name)}
    wanted = "onnxruntime-gpu" if "onnxruntime-gpu" in installed else "onnxruntime"
    again = f"pip uninstall -y {' '.join(installed)} && pip install {requirement(wanted)}"
    if len(installed) > 1:
        both = ", ".join(f"{name} {version}" for name, version in installed.items())
        raise BrokenError(f"several packages provide the same module: {both}", again)
    version = str(getattr(module, "__version__", ""))
    if not version or not hasattr(module, "InferenceSession"):
        raise BrokenError("the module onnxruntime is there, but not ONNX Runtime", f"pip install {requirement(wanted)}")
    listed = next(iter(installed.values()), version)
    if listed != version:
        raise BrokenError(f"it is {version}, but was installed as {listed}: two installations are mixed", again)
    return f"{_accepted(wanted, version)}; {', '.join(module.get_available_providers())}"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def providers() -> str:
    """Return the execution providers of ONNX Runtime that have our kernels, besides the CPU's."""
    module = _imported("onnxruntime", "onnxruntime")
    ours = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
    return ",".join(name for name in module.get_available_providers() if name in ours)


def op(provider: str = "") -> str:
    """Register the op in ONNX Runtime and compare what it computes with its definition, in float64."""
    import numpy as np

    from pom_export.engine.backend import gpu_present
    from pom_export.files import scratch_folder
    from pom_export.runtime.library import custom_ops_library

    if not _is_there("onnxruntime"):
        raise NotInstalledError("ONNX Runtime is not there to try it", f"pip install {requirement('onnxruntime')}")
    if provider and not gpu_present():
        raise NotInstalledError("it needs a GPU, and there is none here", "Run it on a machine with a GPU")
    library = _our_library(custom_ops_library)
    about_to(f"run the op of {library}")
    random = np.random.default_rng(0)
    x = (2 * random.standard_normal((2, 9, 24))).astype(np.float32)
    coefficients = random.standard_normal((24, 3)).astype(np.float32)
    features = _features(x.astype(np.float64), coefficients)
    counts = np.arange(1, 10)[:, np.newaxis]
    expected = {"mean": features.mean(1, keepdims=True), "causal": features.cumsum(1) / counts, "features": features}
    with scratch_folder() as folder:
        for mode, wanted in expected.items():
            file = folder / f"{mode}.onnx"
            file.write_bytes(_model_of(mode))
            session = loaded(file, [provider, "CPUExecutionProvider"] if provider else None)
            (found,) = session.run(None, {"x": x, "coefficients": coefficients})
            error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            if not error <= _TOLERANCE:
                raise BrokenError(f"{library} gives wrong numbers in the mode {mode}: off by {error:.1e}", "make setup")
    return f"computes right in ONNX Runtime: {library}"


def loaded(file: str | Path, providers: list[str] | None = None, *, kernels: bool = True) -> Any:
    """Return a session of a file. If an ONNX Runtime that is too old refuses it, the remedy is a newer one."""
    from pom_export.runtime.session import import_onnxruntime, inference_session

    try:
        return inference_session(file, providers, kernels=kernels)
    except MissingDependencyError:
        raise
    except InputError as error:
        if is_older(import_onnxruntime().__version__, oldest("onnxruntime")):
            raise BrokenError(error.what, f"pip install {requirement('onnxruntime')}") from error
        raise


def _our_library(locate: Any) -> Path:
    """Return the path of a library of ours. One that was never built is not installed; a wrong variable is an error."""
    try:
        path: Path = locate()
    except MissingDependencyError as error:
        if "is not in this installation" in error.what:
            raise NotInstalledError(error.what) from error
        raise
    return path


def _features(x: Any, coefficients: Any) -> Any:
    import numpy as np

    h = np.clip(np.where(x > 0, x, contract.LEAKY_SLOPE * x), contract.CLAMP_LOW, contract.CLAMP_HIGH)
    return sum(coefficients[:, power].astype(np.float64) * h ** (power + 1) for power in range(coefficients.shape[1]))


def _model_of(mode: str) -> bytes:
    """Return a file of one node without a function, so that only a kernel can run it."""
    from onnx import TensorProto, helper

    values: dict[str, Any] = {"form": contract.POWER, "degree": 0, "mode": mode, "rotary_blocks": 1, "epsilon": 0.0}
    values |= {"stateful": 0, "plugin_version": contract.PLUGIN_VERSION, "plugin_namespace": contract.PLUGIN_NAMESPACE}
    node = helper.make_node(
        contract.OP_NAME, ["x", "coefficients"], ["y"], domain=contract.DOMAIN,
        **{name: values[name] for name in contract.ATTRIBUTES},
    )  # fmt: skip
    shapes: dict[str, list[str | int | None]] = {
        "x": ["batch", "tokens", 24],
        "coefficients": [24, 3],
        "y": ["batch", None, 24],
    }
    x, k, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    graph = helper.make_graph([node], "checkup", [x, k], [y])
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def plugin() -> str:
    """Load the TensorRT plugin library, and compare what it was compiled for with the GPU here."""
    from pom_export.engine.backend import gpu_capability
    from pom_export.engine.gpu_code import check_gpu_code, read_gpu_code
    from pom_export.runtime.library import plugin_library

    library = _our_library(plugin_library)
    about_to(f"load {library}")
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise BrokenError(f"{library} cannot be loaded: {reason_of(error)}", "make setup") from error
    if not hasattr(loaded, "getCreators"):
        raise BrokenError(f"{library} is another library: it has no getCreators", "make setup")
    codes = ", ".join(map(str, read_gpu_code(library)))
    chip = gpu_capability()
    check_gpu_code(library, [] if chip is None else [chip], lambda _: None)
    here = "no GPU here to compare with" if chip is None else f"one fits sm{chip} here"
    return f"has code for {codes} ({here}): {library}"


def tensorrt(name: str) -> str:
    """Import a TensorRT, and load our plugin into it."""
    from pom_export.engine.backend import MODULES, PACKAGES, load_backend, load_plugin
    from pom_export.runtime.library import plugin_library

    if not _is_there(MODULES[name]):
        raise NotInstalledError(f"there is no module {MODULES[name]}")
    module = _imported(MODULES[name], PACKAGES[name].partition(">=")[0])
    if not hasattr(module, "Builder"):
        raise NotInstalledError(f"the package {MODULES[name]} is a stub without TensorRT")
    backend = load_backend(name)
    least = PACKAGES[name].partition(">=")[2]
    if is_older(backend.version, least):
        raise BrokenError(f"version {backend.version} is older than {least}", f"pip install '{PACKAGES[name]}'")
    try:
        plugin_library()
    except MissingDependencyError as error:
        return f"{backend.version}; no plugin was loaded: {error.what}"
    about_to("load our plugin")
    try:
        library = load_plugin(backend)
    except OSError as error:
        raise BrokenError(f"one of our libraries cannot be loaded: {reason_of(error)}", "make setup") from error
    return f"{backend.version}, loads our plugin: {library.name}"


def gpu() -> str:
    """Ask the CUDA driver for its version and the first GPU."""
    from pom_export.engine.backend import gpu_capability, gpu_name

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NotInstalledError(f"no CUDA driver: {reason_of(error)}") from error
    if status := cuda.cuInit(0):
        raise BrokenError(f"the CUDA driver is there, but finds no usable GPU (cuInit gives {status})", "nvidia-smi")
    version, name, chip = ctypes.c_int(), gpu_name(), gpu_capability()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    if name is None or chip is None:
        raise BrokenError("the CUDA driver is there, but no GPU", "nvidia-smi")
    driver = f"driver for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    if chip < _OLDEST_CHIP:
        raise BrokenError(f"{name} is sm{chip}, and the oldest supported is sm{_OLDEST_CHIP}", "Use a newer GPU")
    return f"{name} (sm{chip}), {driver}"
