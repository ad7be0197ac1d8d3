"""Seeds that once revealed a fault, and which; if a mutator changes, its format's seeds make other files."""

from __future__ import annotations

# By format; the tests run each of them besides the seeds from 0 on.
REGRESSIONS: dict[str, tuple[int, ...]] = {
    "pt2": (2027,),  # a size that is "true": torch logged a traceback before our error
    "legacy": (60,),  # a tuple of tuples, nested and shared, in place of the protocol's number: it never ended
    # a vocabulary without its own unknown token: an internal error; a regular expression that makes the library panic
    "tokenizer": (18, 136),
}
