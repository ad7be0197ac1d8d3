"""TensorRT engines: which TensorRT is here, shape profiles, building, the manifest."""

from pom_export.engine.builder import build_engine
from pom_export.engine.manifest import EngineInfo
from pom_export.engine.profiles import parse_shapes
from pom_export.engine.targets import parse_targets

__all__ = ["EngineInfo", "build_engine", "parse_shapes", "parse_targets"]
