"""ONNX Runtime sessions with our op library registered."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from pom_export import contract
from pom_export.errors import InputError, MissingDependencyError, PomExportError, kind_of, only_ours, reason_of
from pom_export.files import readable_file
from pom_export.graph.onnx_file import Contents, check_onnx_file, is_ort_format
from pom_export.runtime.keeping_sizes import keeps_sizes, session_class
from pom_export.runtime.library import custom_ops_library, product_kernel
from pom_export.runtime.providers import CPU_PROVIDER, Provider, check_providers, chosen_providers

_LOG = logging.getLogger(__name__)
_READS_OVERLOADS = (1, 27)  # the first ONNX Runtime that distinguishes functions by overload
_TAKES_EMPTY_INPUTS = (1, 24)  # the first that does not crash on an empty input of a custom op
_SILENT = 4  # ONNX Runtime's severity "fatal": errors reach the user as exceptions, once
# Session options with our library. Registering it a second time would make them unusable.
_WITH_OUR_LIBRARY: Final[WeakSet[Any]] = WeakSet()
# How products of dequantized weights are computed, by the accuracy_level of MatMulNBits.
_WEIGHTS_ALONE: Final = "session.qdq_matmulnbits_accuracy_level"
_IN_FLOAT32: Final = "1"
_BLOCK_PRODUCT: Final = "MatMulNBits"
# The kernels without vector instructions, with which ONNX Runtime's own products are faster.
_SCALAR: Final = "scalar"
_KERNEL: Final = "POM_CPU_KERNEL"
_TWICE: Final = "Domain already set"
_SHAPES_OUTSIDE: Final = "Cannot parse data from external tensors"
_INSTALL_HINT = "Install it: pip install 'onnxruntime>=1.22', or with a GPU 'onnxruntime-gpu>=1.22'"


def import_onnxruntime() -> Any:
    """Return the module onnxruntime.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime is not installed", _INSTALL_HINT) from error
    return onnxruntime


def default_session_options() -> Any:
    """Return the onnxruntime.SessionOptions that a session uses by default.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = _SILENT
    # A memory pattern is a single block for all activations, kept per input size. It doubles the memory and saves no
    # time.
    options.enable_mem_pattern = False
    # Otherwise, products with dequantized weights become an operator that also rounds their activations to 8 bits,
    # which the file does not ask for.
    options.add_session_config_entry(_WEIGHTS_ALONE, _IN_FLOAT32)
    return options


def _check_version(file: Path, version: str, kernels: bool) -> None:
    """Refuse a file that this version of ONNX Runtime would compute wrongly or crash on."""
    if tuple(int(part) for part in version.split(".")[:2]) >= (_TAKES_EMPTY_INPUTS if kernels else _READS_OVERLOADS):
        return
    import onnx

    from pom_export.graph.function_names import refuse_overloads
    from pom_export.graph.unfolding import aggregations_of, unfolded

    model = onnx.load(file, format="protobuf", load_external_data=False)
    if not kernels:
        refuse_overloads(file, model.functions, f"ONNX Runtime {version}")
        return
    for node in aggregations_of(unfolded(model).graph):
        if not all(node.input):
            raise InputError(
                f"input {list(node.input).index('')} of {node.op_type} {node.name!r} is empty, and ONNX Runtime "
                f"{version} would crash on it",
                "Export it again, which puts a placeholder there, or use ONNX Runtime 1.24 or newer",
            )


@only_ours
def inference_session(
    model: str | os.PathLike[str],
    providers: Sequence[Provider] | None = None,
    *,
    kernels: bool = True,
    fused: bool = True,
    session_options: Any = None,
) -> Any:
    """Load a model into ONNX Runtime with our kernels.

    Args:
        model: path of the ONNX file.
        providers: execution providers, each a name or a name and its options; default: the CPU. A node runs on the
            first that supports it. The op library has kernels for the CPU and CUDA providers, and our plugin is added
            to the TensorRT provider's options.
        kernels: False omits our library, so that the op's function of standard ops runs instead.
        fused: False runs each node of the file by itself. Otherwise, on the CPU alone, layers whose products have int4
            or int8 weights and round their activations run in a few nodes of our library, which is faster and computes
            the same but for float32's rounding. Options that save the optimized graph, disable optimizations or name a
            folder of weights disable it too.
        session_options: an onnxruntime.SessionOptions to start from. Our library is registered in it once and stays
            there, since ONNX Runtime can't copy options. Nothing else is changed, and it can be used for any number of
            calls. Weights that its `add_initializer` replaces need fused=False: those in fused nodes are the file's.

    Returns:
        An onnxruntime.InferenceSession. Its `run` raises InputError for inconsistent sizes, such as a mask that is
        longer than the tokens, and warns of sizes beyond the file's limits. With IO binding, sizes are not checked.

    Raises:
        InputError: the file cannot be read or declares more than it contains, or ONNX Runtime refuses it or does not
            have one of the providers.
        MissingDependencyError: onnxruntime or our library is not installed, or a provider could not be loaded.
    """
    onnxruntime = import_onnxruntime()
    file = readable_file(model, "model")
    contents = None
    if not is_ort_format(file):
        contents = check_onnx_file(file)
        _check_version(file, onnxruntime.__version__, kernels)
    options = default_session_options() if session_options is None else session_options
    if not isinstance(options, onnxruntime.SessionOptions):
        raise InputError(f"session_options is {kind_of(options)}", "Give an onnxruntime.SessionOptions")
    chosen = chosen_providers(onnxruntime, providers, options, plugin=kernels)
    try:
        if kernels and _needs_library(file):
            _register(options)
        elif not kernels and options in _WITH_OUR_LIBRARY:
            raise InputError(
                "these session options already hold our kernels from an earlier call, and kernels=False asks for none",
                "Give new session options",
            )

        # The fallback would run the model on the CPU if a provider fails, now or in a later call.
        def create(model: str | bytes) -> Any:
            return session_class()(model, options, providers=chosen, enable_fallback=0)

        session = None
        if fused and kernels and contents is not None and _can_fuse(contents, options, chosen):
            from pom_export.runtime.fusing.handing_over import fused_session

            session = fused_session(file, contents.externals, options, create, callers=session_options is not None)
        session = session or create(os.fspath(file))
        session.disable_fallback()  # ONNX Runtime 1.22 ignores the argument
    except PomExportError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise _refused(file, reason_of(error)) from error
    check_providers(session, chosen)
    keeps_sizes(session)
    _LOG.debug("session of %s on %s, kernels %s", file, ", ".join(session.get_providers()), "on" if kernels else "off")
    return session


def _can_fuse(contents: Contents, options: Any, chosen: Sequence[tuple[str, Any]] | None) -> bool:
    """Return whether a file may have what fused nodes replace, and its session may have them."""
    if _BLOCK_PRODUCT not in contents.operators or [name for name, _ in chosen or ()] != [CPU_PROVIDER]:
        return False
    plain = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    if options.optimized_model_filepath or options.graph_optimization_level == plain:
        return False
    kernel = product_kernel()
    return kernel is not None and (kernel != _SCALAR or os.environ.get(_KERNEL) == _SCALAR)


def _refused(file: Path, reason: str) -> InputError:
    """Return the error for a file that ONNX Runtime could not load, with what to do."""
    hint = "Is it a complete ONNX file?"
    if _TWICE in reason:
        hint = "Don't register our library in the session options: inference_session does"
    elif _SHAPES_OUTSIDE in reason:
        hint = "Save it with small tensors inside, which decide shapes: onnx.save(..., size_threshold=1024)"
    return InputError(f"ONNX Runtime cannot load {file.name}: {reason}", hint)


def _needs_library(file: Path) -> bool:
    """Return whether to register our library: always if it is there, else unless the file has none of our ops.

    Raises:
        MissingDependencyError: it is not installed, and the file needs it.
    """
    try:
        custom_ops_library()
    except MissingDependencyError:
        if is_ort_format(file) or _imports_our_ops(file):
            raise
        return False
    return True


def _imports_our_ops(file: Path) -> bool:
    import onnx

    model = onnx.load(file, format="protobuf", load_external_data=False)
    return any(
        imported.domain == contract.DOMAIN for part in (model, *model.functions) for imported in part.opset_import
    )


def _register(options: Any) -> None:
    """Register our library in session options, unless an earlier call did."""
    if options not in _WITH_OUR_LIBRARY:
        options.register_custom_ops_library(os.fspath(custom_ops_library()))
        _WITH_OUR_LIBRARY.add(options)
