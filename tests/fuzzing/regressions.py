"""Seeds that once ended badly, and why; a mutator that is changed changes what the numbers of its format make."""

from __future__ import annotations

# By format; each runs in the tests besides those from 0 on.
REGRESSIONS: dict[str, tuple[int, ...]] = {}
