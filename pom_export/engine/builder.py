"""Build a TensorRT engine from an exported model, with our plugin as its aggregation layers."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pom_export.engine.backend import TENSORRT_RTX, Backend, gpu_present, load_backend, load_plugin
from pom_export.engine.logger import take_errors, tensorrt_logger
from pom_export.engine.manifest import EngineInfo
from pom_export.engine.profiles import ShapeProfile, Shapes, make_profiles
from pom_export.errors import EngineError, InputError, PomExportError
from pom_export.files import sha256_of, staged_output
from pom_export.graph.exported import ExportedModel, read_model
from pom_export.runtime.quiet import quiet_polygraphy
from pom_export.version import __version__

# Without a GPU to ask: consumer Ampere, Ada and Blackwell, what TensorRT for RTX is made for.
DEFAULT_TARGETS = ("sm86", "sm89", "sm120")
CURRENT = "current"
_POLL_SECONDS = 0.1
_REASON_LENGTH = 400
_BUILD_HINT = "Run with --debug for the trace"


def parse_targets(text: str | None) -> tuple[str, ...]:
    """Parse `sm86,sm120`.

    Raises:
        InputError: an item is no compute capability.
    """
    targets = tuple(item.strip() for item in (text or "").split(",") if item.strip())
    for target in targets:
        if not re.fullmatch(r"sm\d{2,3}", target):
            raise InputError(f"target {target!r} is no compute capability", "Examples: sm86, sm89, sm120")
    return targets


def build_engine(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    backend: str = "auto",
    targets: Sequence[str] = (),
    min_shapes: Shapes | None = None,
    opt_shapes: Shapes | None = None,
    max_shapes: Shapes | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    embed_plugin: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> EngineInfo:
    """Build an engine; TensorRT for RTX needs no GPU for it.

    Args:
        model: an exported ONNX file.
        output: where the engine goes; its manifest goes beside it, with ".json" added.
        backend: "auto", "tensorrt" or "tensorrt-rtx".
        targets: compute capabilities such as "sm86" (TensorRT for RTX only); default: this machine's GPU, or
            `DEFAULT_TARGETS` where there is none.
        min_shapes: smallest shape of each input; dimensions not given take defaults.
        opt_shapes: most frequent shapes.
        max_shapes: largest shapes.
        timing_cache: a file to read and update (full TensorRT only).
        embed_plugin: whether the engine carries the plugin library, so that it loads anywhere.
        progress: called with one line a stage.

    Raises:
        InputError: a file or option is not usable.
        MissingDependencyError: TensorRT or the plugin library is not installed.
        EngineError: TensorRT refused the model, or an aggregation did not become a plugin layer.
    """
    exported = read_model(model)
    if not exported.aggregations:
        raise InputError(f"{exported.path} holds no PoM aggregation", "Export it with `pom-export export`")
    profiles = make_profiles(exported.inputs, min_shapes or {}, opt_shapes or {}, max_shapes or {})
    loaded = load_backend(backend)
    chosen = _resolve_targets(loaded, targets)
    if timing_cache is not None and loaded.is_rtx:
        raise InputError("TensorRT for RTX keeps no timing cache", "Leave --timing-cache out")
    with staged_output(output, exported.path) as staged:
        library = load_plugin(loaded)
        started = time.monotonic()
        build = _Build(loaded, exported, profiles, chosen, library if embed_plugin else None, timing_cache, progress)
        engine = build.run()
        seconds = time.monotonic() - started
        staged.write_bytes(engine)
        info = EngineInfo(
            engine=os.fspath(output),
            manifest=f"{os.fspath(output)}.json",
            backend=loaded.name,
            backend_version=loaded.version,
            targets=list(chosen),
            aggregations=len(exported.aggregations),
            plugin_layers=build.plugin_layers,
            plugin_embedded=embed_plugin,
            profiles={
                name: {"min": list(p.minimum), "opt": list(p.optimum), "max": list(p.maximum)}
                for name, p in profiles.items()
            },
            inputs=[str(spec) for spec in exported.inputs],
            outputs=[str(spec) for spec in exported.outputs],
            bytes=len(engine),
            seconds=round(seconds, 2),
            sha256=sha256_of(staged),
            model_sha256=sha256_of(exported.path),
            plugin_sha256=sha256_of(library),
            toolkit_version=__version__,
        )
        staged.with_name(staged.name + ".json").write_text(json.dumps(info.to_dict(), indent=2) + "\n")
    return info


def _resolve_targets(backend: Backend, targets: Sequence[str]) -> tuple[str, ...]:
    """Return what to build for; the full TensorRT builds for this machine's GPU and nothing else."""
    if not backend.is_rtx:
        if targets:
            raise InputError(
                f"TensorRT builds for the GPU at hand, not for {', '.join(targets)}", f"Use --backend {TENSORRT_RTX}"
            )
        if not gpu_present():
            raise EngineError("TensorRT needs a GPU to build, and none is here", f"Use --backend {TENSORRT_RTX}")
        return (CURRENT,)
    known = sorted(name.lower() for name in dir(backend.module.ComputeCapability) if re.fullmatch(r"SM\d+", name))
    for target in targets:
        if target not in known:
            raise InputError(
                f"{backend.name} {backend.version} does not build for {target}", f"It knows {', '.join(known)}"
            )
    return tuple(targets) or ((CURRENT,) if gpu_present() else DEFAULT_TARGETS)


class _Build:
    """One build, in a thread of its own: TensorRT blocks the calling thread, where Ctrl-C could not arrive."""

    def __init__(
        self,
        backend: Backend,
        model: ExportedModel,
        profiles: Mapping[str, ShapeProfile],
        targets: Sequence[str],
        embedded: Path | None,
        timing_cache: str | os.PathLike[str] | None,
        progress: Callable[[str], None],
    ) -> None:
        self.backend = backend
        self.model = model
        self.profiles = profiles
        self.targets = targets
        self.embedded = embedded
        self.timing_cache = timing_cache
        self.progress = progress
        self.plugin_layers = 0
        self.cancelled = threading.Event()

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
            done.wait()
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
