"""One TensorRT build: parse, check the plugin layers, configure, build; interruptible."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pom_export.engine.backend import Backend
from pom_export.engine.logger import take_errors, tensorrt_logger
from pom_export.engine.profiles import ShapeProfile
from pom_export.engine.targets import CURRENT
from pom_export.errors import EngineError, PomExportError
from pom_export.graph.exported import ExportedModel
from pom_export.runtime.quiet import quiet_polygraphy

_POLL_SECONDS = 0.1
_REASON_LENGTH = 400
_BUILD_HINT = "Run with --debug for the trace"


@dataclass
class BuildJob:
    """One build, in a thread of its own: TensorRT blocks the calling thread, where Ctrl-C could not arrive.

    Attributes:
        backend: the TensorRT that builds.
        model: what is built.
        profiles: shapes of each input.
        targets: architectures, or `CURRENT` for this machine's GPU.
        embedded: the plugin library to carry, or None.
        timing_cache: a file to read and update, or None.
        progress: called with one line a stage.
        plugin_layers: set by `run`: how many layers are our plugin.
        cancelled: set to stop the build.
    """

    backend: Backend
    model: ExportedModel
    profiles: Mapping[str, ShapeProfile]
    targets: Sequence[str]
    embedded: Path | None
    timing_cache: str | os.PathLike[str] | None
    progress: Callable[[str], None]
    plugin_layers: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> bytes:
        """Return the serialized engine."""
        outcome: list[bytes | BaseException] = []

        def work() -> None:
            try:
                outcome.append(self._build())
            except BaseException as error:  # noqa: BLE001 (raised again in the calling thread)
                outcome.append(error)
            finally:
                done.set()

        # An event and not Thread.join: in Python 3.11 an interrupted join takes a running thread for a finished one.
        done = threading.Event()
        threading.Thread(target=work, name="tensorrt-build", daemon=True).start()
        try:
            while not done.wait(_POLL_SECONDS):
                pass
        except KeyboardInterrupt:
            self.cancelled.set()
            self.progress("interrupted; waiting for TensorRT to stop")
            while not done.is_set():
                # A second Ctrl-C must not leave TensorRT running in a process that ends.
                with contextlib.suppress(KeyboardInterrupt):
                    done.wait(_POLL_SECONDS)
            raise
        result = outcome[0]
        if isinstance(result, PomExportError):
            raise result
        if isinstance(result, BaseException):
            raise self._failure(result) from result
        return result

    def _failure(self, error: BaseException) -> EngineError:
        logged = take_errors() or [str(error).strip() or type(error).__name__]
        # The parser names the node in its first line and the reason in its last message.
        lines = [logged[0].splitlines()[0], *logged[-1].splitlines()]
        reason = " ".join(dict.fromkeys(line.strip() for line in lines))[:_REASON_LENGTH]
        return EngineError(f"{self.backend.name} {self.backend.version} cannot build: {reason}", _BUILD_HINT)

    def _build(self) -> bytes:
        from polygraphy.backend import trt as loaders
        from polygraphy.backend.trt import util as trt_util

        trt = self.backend.module
        trt_util.TRT_LOGGER = tensorrt_logger(trt)
        take_errors()
        with quiet_polygraphy():
            self.progress(f"parsing with {self.backend.name} {self.backend.version}")
            builder, network, parser = loaders.network_from_onnx_path(
                os.fspath(self.model.path),
                flags=[trt.OnnxParserFlag.NATIVE_INSTANCENORM, trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE],
                strongly_typed=not self.backend.is_rtx,
            )
            self._count_plugin_layers(trt, network)
            config = loaders.PostprocessConfig(self._config(trt), func=self._embed)
            self.progress(f"building {network.num_layers} layers for {', '.join(self.targets)}")
            return bytes(
                loaders.engine_bytes_from_network(
                    (builder, network, parser), config=config, save_timing_cache=self.timing_cache
                )
            )

    def _count_plugin_layers(self, trt: Any, network: Any) -> None:
        """Count plugin layers; a function that shadowed the plugin would be slow without a word."""
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        self.plugin_layers = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
        expected = len(self.model.aggregations)
        if self.plugin_layers != expected:
            raise EngineError(
                f"{self.plugin_layers} of {expected} aggregations became plugin layers",
                "Report this: the parser preferred the op's function",
            )

    def _config(self, trt: Any) -> Any:
        from polygraphy.backend.trt import CreateConfig, Profile

        profile = Profile()
        for name, shapes in self.profiles.items():
            profile.add(name, min=shapes.minimum, opt=shapes.optimum, max=shapes.maximum)
        monitor = _monitor(trt, self.progress, self.cancelled)
        if not self.backend.is_rtx:
            return CreateConfig(profiles=[profile], load_timing_cache=self.timing_cache, progress_monitor=monitor)
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        capabilities = [(int(t[2:-1]), int(t[-1])) for t in self.targets if t != CURRENT]
        return CreateConfigRTX(
            profiles=[profile],
            progress_monitor=monitor,
            use_gpu=not capabilities,
            compute_capabilities=capabilities or None,
        )

    def _embed(self, builder: Any, network: Any, config: Any) -> None:  # noqa: ARG002 (Polygraphy's signature)
        if self.embedded is not None:
            config.plugins_to_serialize = [os.fspath(self.embedded)]


def _monitor(trt: Any, progress: Callable[[str], None], cancelled: threading.Event) -> Any:
    """Return a TensorRT progress monitor that reports the outer phases and can stop the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                progress(f"{phase_name} ({num_steps} steps)")

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002 (TensorRT's signature)
            return not cancelled.is_set()

    return Monitor()
