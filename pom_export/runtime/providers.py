"""Choose the execution providers of an ONNX Runtime session, and check that it runs on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pom_export.errors import InputError, MissingDependencyError, kind_of
from pom_export.runtime.tensorrt_provider import TENSORRT_PROVIDER, tensorrt_provider_options

# A provider's name, or its name and options.
Provider = str | tuple[str, Mapping[str, Any]]
_Named = tuple[str, dict[str, Any]]
CPU_PROVIDER: Final = "CPUExecutionProvider"
_FORM_HINT: Final = "Give a list of names, such as ['CPUExecutionProvider'], or of pairs of a name and its options"


def chosen_providers(
    onnxruntime: Any, providers: Sequence[Provider] | None, options: Any, *, plugin: bool
) -> list[_Named] | None:
    """Return the execution providers of a session; None leaves them to session options that already have some.

    Args:
        onnxruntime: the module.
        providers: as for `inference_session`.
        options: the onnxruntime.SessionOptions.
        plugin: add our plugin to the options of TensorRT's provider.

    Raises:
        InputError: this ONNX Runtime does not have one of them and would run the model on another, or `providers` is
            not a list of names and options.
    """
    if providers is None and getattr(options, "has_providers", bool)():  # missing in some versions of ONNX Runtime
        return None
    named = _named(providers or CPU_PROVIDER)
    available = _available(onnxruntime)
    for name, _ in named:
        if name not in available:
            raise InputError(
                f"the execution provider {name} is not in ONNX Runtime {onnxruntime.__version__}, "
                f"which has {', '.join(available)}",
                "Leave it out, or install an ONNX Runtime that has it, such as onnxruntime-gpu for CUDA and TensorRT",
            )
    return [with_plugin(provider) for provider in named] if plugin else named


def check_providers(session: Any, chosen: Sequence[_Named] | None) -> None:
    """Check that a session has the execution providers that it was given.

    ONNX Runtime continues without a provider that it cannot load, such as CUDA's when one of its libraries is missing.

    Raises:
        MissingDependencyError: one was not loaded.
    """
    loaded = session.get_providers()
    for name, _ in chosen or ():
        if name not in loaded:
            raise MissingDependencyError(
                f"ONNX Runtime could not load the execution provider {name}, and would use only {', '.join(loaded)}",
                "Leave it out, or install the libraries that it needs; session_options with log_severity_level=2 show "
                "which",
            )


def with_plugin(provider: _Named) -> _Named:
    """Return the provider, adding our plugin to TensorRT's options."""
    name, options = provider
    return (name, tensorrt_provider_options(**options)) if name == TENSORRT_PROVIDER else provider


def _named(providers: Any) -> list[_Named]:
    """Return the providers as pairs of a name and options."""
    if isinstance(providers, str):
        return [(providers, {})]
    if not isinstance(providers, Sequence):
        raise InputError(f"providers is {kind_of(providers)}", _FORM_HINT)
    named: list[_Named] = []
    for provider in providers:
        match provider:
            case str(name) | (str(name),):
                named.append((name, {}))
            case (str(name), Mapping() as options):
                named.append((name, {**options}))
            case _:
                raise InputError(f"an execution provider is {provider!r:.60}", _FORM_HINT)
    return named


def _available(onnxruntime: Any) -> Sequence[str]:
    """Return the available execution providers: those of this ONNX Runtime, and of libraries registered in it."""
    # ONNX Runtime 1.22 does not support such libraries.
    devices: Sequence[Any] = getattr(onnxruntime, "get_ep_devices", list)()
    return [*dict.fromkeys((*onnxruntime.get_available_providers(), *(device.ep_name for device in devices)))]
