"""PoM in PyTorch: the reference mathematics, the registered op and the layers."""

from pom_export.mixer.aggregation import MixerState
from pom_export.mixer.base import Mixer
from pom_export.mixer.config import MixerConfig, ProductMixerConfig, RotaryConfig
from pom_export.mixer.op import polynomial_aggregation
from pom_export.mixer.polynomial_mixer import PolynomialMixer
from pom_export.mixer.product_mixer import ProductMixer
from pom_export.mixer.rotary_mixer import RotaryPolynomialMixer
from pom_export.mixer.stateful_op import stateful_polynomial_aggregation

__all__ = [
    "Mixer",
    "MixerConfig",
    "MixerState",
    "PolynomialMixer",
    "ProductMixer",
    "ProductMixerConfig",
    "RotaryConfig",
    "RotaryPolynomialMixer",
    "polynomial_aggregation",
    "stateful_polynomial_aggregation",
]
