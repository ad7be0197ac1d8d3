"""Seeds that once ended badly, and why; a mutator that is changed changes what the numbers of its format make."""

from __future__ import annotations

# By format; each runs in the tests besides those from 0 on.
REGRESSIONS: dict[str, tuple[int, ...]] = {
    "pt2": (2027,),  # a size that is "true": torch logged a traceback before our line
    "legacy": (60,),  # a tuple of tuples, nested and shared, in place of the protocol's number: no end
    # its vocabulary lacks what it falls back to: an internal error; an expression that makes the library panic
    "tokenizer": (18, 136),
}
