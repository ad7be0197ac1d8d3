"""Choose the execution providers of an ONNX Runtime session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pom_export.runtime.tensorrt_provider import TENSORRT_PROVIDER, tensorrt_provider_options

# A provider's name, or its name and options.
Provider = str | tuple[str, Mapping[str, Any]]
_DEFAULT: Final = ("CPUExecutionProvider",)


def chosen_providers(
    providers: Sequence[Provider] | None, options: Any, available: Sequence[str]
) -> list[Provider] | None:
    """Return the execution providers of a session; None leaves them to session options that already have some.

    Args:
        providers: as for `inference_session`.
        options: the onnxruntime.SessionOptions.
        available: the providers that may get our plugin.
    """
    if providers is None and getattr(options, "has_providers", bool)():  # missing in some versions of ONNX Runtime
        return None
    named = [providers] if isinstance(providers, str) else list(providers or _DEFAULT)
    return [with_plugin(provider, available) for provider in named]


def with_plugin(provider: Provider, available: Sequence[str]) -> Provider:
    """Return the provider, adding our plugin to TensorRT's options if the plugin is installed."""
    name, options = (provider, {}) if isinstance(provider, str) else provider
    if name != TENSORRT_PROVIDER or name not in available:
        return provider
    return name, tensorrt_provider_options(**options)
