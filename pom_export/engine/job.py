"""One TensorRT build: parse, check layers and precisions, configure, build; interruptible."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import onnx

from pom_export import interrupts
from pom_export.engine.backend import polygraphy_trt
from pom_export.engine.build_config import BuiltEngine
from pom_export.engine.build_plan import BuildPlan
from pom_export.engine.functions import for_plugin, inlined
from pom_export.engine.logger import collected_errors, collected_layers, tensorrt_logger
from pom_export.engine.monitor import make_monitor
from pom_export.engine.precision import check_precisions, declared_types
from pom_export.engine.product_types import EngineProducts, engine_products
from pom_export.engine.profiles import refused_shapes
from pom_export.engine.targets import CURRENT
from pom_export.errors import SEE_CAUSE, EngineError, PomExportError
from pom_export.quiet import quiet_polygraphy

_POLL_SECONDS = 0.1
_REASON_LENGTH = 400
_BRANCH_HINT = "TensorRT may not take a plugin in a branch: build with `use_plugin=False`"
# Quantized products that TensorRT does not read, at least not in float32.
_FOR_CPUS = ("MatMulNBits", "MatMulInteger", "DynamicQuantizeLinear")
# It has no matrix products in float32 in TensorRT for RTX.
_TURING = "sm75"


@dataclass
class BuildJob:
    """A build in a separate thread, because TensorRT blocks the thread that calls it, which could not handle Ctrl-C.

    Attributes:
        plan: what to build; its plugin library is already loaded.
        cancelled: set to stop the build.
    """

    plan: BuildPlan
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> BuiltEngine:
        """Build the engine and return it."""
        outcome: list[BuiltEngine | BaseException] = []
        logged: list[str] = []

        def work() -> None:
            try:
                with collected_errors(logged):
                    outcome.append(self._build())
            except BaseException as error:  # noqa: BLE001 (raised again in the calling thread)
                outcome.append(error)
            finally:
                done.set()

        # An event, because in Python 3.11 an interrupted Thread.join takes a running thread for a finished one.
        done = threading.Event()
        # TensorRT must not be left running in a process that exits, however many signals arrive.
        with interrupts.deferred() as interrupted:
            threading.Thread(target=work, name="tensorrt-build", daemon=True).start()
            while not done.wait(_POLL_SECONDS):
                if interrupted() and not self.cancelled.is_set():
                    self.cancelled.set()
                    self.plan.progress("interrupted; waiting for TensorRT to stop")
        result = outcome[0]
        if isinstance(result, PomExportError):
            raise result
        if isinstance(result, BaseException):
            raise self._failure(logged, result) from result
        return result

    def _failure(self, logged: list[str], error: BaseException) -> EngineError:
        logged = logged or [str(error).strip() or type(error).__name__]
        # The parser names the node in its first line and the reason in its last message.
        lines = [logged[0].splitlines()[0], *logged[-1].splitlines()]
        reason = " ".join(dict.fromkeys(line.strip() for line in lines))[:_REASON_LENGTH]
        hint = refused_shapes(reason, self.plan.model.inputs, self.plan.profiles) or SEE_CAUSE
        if self.plan.library is not None and self.plan.model.in_branches:
            hint = _BRANCH_HINT
        if _TURING in self.plan.targets and "FP32 GEMM is not supported" in reason:
            hint = f"Leave {_TURING} out, or export the model with `dtype='float16'`"
        if any(operator in reason for operator in _FOR_CPUS):
            hint = "Its products are quantized for ONNX Runtime on a CPU: quantize the original for TensorRT"
        return EngineError(f"{self.plan.backend.name} {self.plan.backend.version} cannot build: {reason}", hint)

    def _build(self) -> BuiltEngine:
        trt = self.plan.backend.module
        loaders = polygraphy_trt(self.plan.backend)
        with quiet_polygraphy():
            self.plan.progress(f"parsing with {self.plan.backend.name} {self.plan.backend.version}")
            # Not with Polygraphy's loader, which uses a logger that all of its users share.
            builder = trt.Builder(tensorrt_logger(trt))
            network = builder.create_network(self._network_flags(trt))
            parser = trt.OnnxParser(network, tensorrt_logger(trt))
            parsed, declared = self._parse(trt, parser)
            loaders.util.check_onnx_parser_errors(parser, parsed)
            plugin_layers = self._count_plugin_layers(trt, network)
            precisions = check_precisions(network, declared)
            if self.cancelled.is_set():
                raise KeyboardInterrupt
            config = loaders.PostprocessConfig(self._config(trt), func=self._embed)
            self.plan.progress(f"building {network.num_layers} layers for {', '.join(self.plan.targets)}")
            with collected_layers() as lists:
                engine = loaders.engine_bytes_from_network(
                    (builder, network, parser), config=config, save_timing_cache=self.plan.timing_cache
                )
        products = engine_products(precisions.products, lists)
        self._tell_of_products(products)
        return BuiltEngine(
            bytes(engine),
            plugin_layers,
            precisions.layers,
            precisions.product_counts(),
            None if products is None else products.counts,
            {} if products is None else products.otherwise,
        )

    def _tell_of_products(self, products: EngineProducts | None) -> None:
        """Report products that the file has in a small type and the engine computes in another."""
        otherwise = {} if products is None else products.otherwise
        if otherwise:
            name, types = next(iter(otherwise.items()))
            self.plan.progress(f"{len(otherwise)} products are not in the type asked for, such as {name}: {types}")

    def _network_flags(self, trt: Any) -> int:
        """Return the flags of a strongly typed network. Networks of TensorRT for RTX always are."""
        return 0 if self.plan.backend.is_rtx else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def _parse(self, trt: Any, parser: Any) -> tuple[bool, dict[str, str]]:
        """Parse the model; return whether that succeeded, and the types that the file declares."""
        path = self.plan.model.path
        model = onnx.load(path, format="protobuf", load_external_data=False)
        declared = declared_types(model.graph)
        if self.plan.library is not None:
            parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
            content = for_plugin(model)
        else:
            content = inlined(path, model)
        del model  # may contain large weights
        name = os.fspath(path)
        return bool(parser.parse_from_file(name) if content is None else parser.parse(content, name)), declared

    def _count_plugin_layers(self, trt: Any, network: Any) -> int:
        """Count the plugin layers, since a function used instead of the plugin would be slow without any notice."""
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        found = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
        model = self.plan.model
        most = len(model.aggregations) if self.plan.library is not None else 0
        if not most - model.in_branches <= found <= most:
            raise EngineError(
                f"{found} of {len(model.aggregations)} aggregations became plugin layers, instead of {most}",
                "Report this: the parser preferred another implementation of the op",
            )
        if found < most:
            self.plan.progress(f"{most - found} of {most} aggregations are in branches that TensorRT leaves out")
        return found

    def _config(self, trt: Any) -> Any:
        loaders = polygraphy_trt(self.plan.backend)
        profile = loaders.Profile()
        for name, shapes in self.plan.profiles.items():
            profile.add(name, min=shapes.minimum, opt=shapes.optimum, max=shapes.maximum)
        shared = {
            "profiles": [profile],
            "progress_monitor": make_monitor(trt, self.plan.progress, self.cancelled),
            # Provides names and types of layers to the inspector and the log, without making the engine slower.
            "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        }
        if not self.plan.backend.is_rtx:
            return loaders.CreateConfig(**shared, load_timing_cache=self.plan.timing_cache)
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        capabilities = [(int(t[2:-1]), int(t[-1])) for t in self.plan.targets if t != CURRENT]
        return CreateConfigRTX(**shared, use_gpu=not capabilities, compute_capabilities=capabilities or None)

    def _embed(self, builder: Any, network: Any, config: Any) -> None:  # noqa: ARG002 (Polygraphy's signature)
        if self.plan.embedded is not None:
            config.plugins_to_serialize = [os.fspath(self.plan.embedded)]
