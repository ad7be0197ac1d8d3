"""Names of the architectures and families of recognised checkpoints."""

from __future__ import annotations

from typing import Final

V1: Final = "pom-v1"
V1_GROUPED: Final = "pom-v1-grouped"
V2: Final = "pom-v2"

MIXER: Final = "mixer"
LANGUAGE_MODEL: Final = "language-model"
NANOGPT: Final = "nanogpt-pom"
JIT: Final = "jit-pom"

# The values of `family` that a user may give: `label` in `ARCHITECTURES`.
FAMILIES: Final = (NANOGPT, JIT, LANGUAGE_MODEL, V2, V1, V1_GROUPED)
