"""Find a smallest set of things that suffices, with few trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Suffices = Callable[[Sequence[str]], bool]


def smallest_set(candidates: Sequence[str], suffices: Suffices) -> list[str]:
    """Return some of the candidates that suffice together, of which none can be left out, in their order.

    This is QuickXplain (Junker, 2004): to find k of n it takes about 2k (log2(n / k) + 1) trials. It presumes that more
    candidates never do worse. There may be a smaller set of others.

    Args:
        candidates: what to choose from; all of it suffices, and nothing of it does not.
        suffices: tries a set, which it gets in the candidates' order.
    """
    return _needed([], list(candidates), lambda chosen: suffices([each for each in candidates if each in chosen]))


def _needed(given: list[str], candidates: list[str], suffices: Suffices) -> list[str]:
    """Return the candidates that are needed beside the given ones, which do not suffice alone."""
    if len(candidates) == 1:
        return candidates
    middle = len(candidates) // 2
    first, second = candidates[:middle], candidates[middle:]
    of_second = [] if suffices([*given, *first]) else _needed([*given, *first], second, suffices)
    if of_second and suffices([*given, *of_second]):
        return of_second
    return [*_needed([*given, *of_second], first, suffices), *of_second]
