"""PoM in PyTorch: the reference mathematics, the registered op and the layer."""

from pom_export.mixer.config import MixerConfig
from pom_export.mixer.op import polynomial_aggregation
from pom_export.mixer.polynomial_mixer import PolynomialMixer

__all__ = ["MixerConfig", "PolynomialMixer", "polynomial_aggregation"]
