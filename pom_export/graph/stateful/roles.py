"""Determine what each input of a user's causal model is: tokens, their positions, a mask, a context, or fixed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.errors import InputError
from pom_export.graph.outputs import named_outputs
from pom_export.graph.own_program import repeated

STREAM: Final = "tokens"
POSITIONS: Final = "positions"
VALID: Final = "valid"
TRIANGLE: Final = "triangle"
CONTEXT: Final = "context"
FIXED: Final = "fixed"

CONTEXT_TOKENS: Final = 5
"""How many tokens of a context a model is traced with; see `trace.py`."""

_MASKS: Final = ("mask",)
_POSITIONS: Final = ("position", "pos")
# Inputs whose nonzero values mark tokens to leave out, as torch names them.
_INVERTED: Final = ("padding",)
_OF_CONTEXTS: Final = ("src", "source", "memory", "encoder", "context", "cross")
_LEAST_RANK: Final = 2

Run = Callable[[Mapping[str, Tensor]], Any]


@dataclass(frozen=True)
class Roles:
    """What each input is.

    Attributes:
        of: for each input by name, STREAM for what has an entry for each token, POSITIONS for positions that count from
            0, VALID for a mask in which every token counts, TRIANGLE for a causal mask (..., tokens, tokens), CONTEXT
            for another sequence, which does not change, and
            FIXED for what has no sequence, or one of a size that the model fixes.
        main: the input of the tokens.
        rows: rows of the example.
        count: tokens of the example.
        fills: for each mask, the value that every token has; for a causal one, its value where a token sees another,
            and elsewhere.
        flat: inputs whose first axis is that of the tokens.
        last: whether the model returns only the last token's output.
        aside: outputs that depend on a context alone, by name.
    """

    of: Mapping[str, str]
    main: str
    rows: int
    count: int
    fills: Mapping[str, Any]
    flat: frozenset[str] = frozenset()
    last: bool = False
    aside: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> str:
        return self.of[name]

    def is_flat(self, name: str) -> bool:
        """Return whether an input has no axis of rows."""
        return name in self.flat

    def is_positions(self, name: str) -> bool:
        """Return whether an input holds positions."""
        return self.of[name] == POSITIONS

    def sizes(self, name: str, tensor: Tensor) -> list[tuple[int, int]]:
        """Return which axes of the tokens' input an input's axes are as long as: pairs of that axis and its own."""
        if self.is_flat(name):
            return [(1, 0)]
        rows = [(0, 0)] if self.of[name] != FIXED and tensor.shape[0] == self.rows else []
        if self.of[name] == FIXED and tensor.dim() and self.rows > 1 and tensor.shape[0] == self.rows:
            rows = [(0, 0)]
        return [*rows, (1, 1)] if self.of[name] in {STREAM, POSITIONS, VALID} else rows

    def same_lengths(self, examples: Mapping[str, Tensor]) -> list[tuple[str, str]]:
        """Return pairs of a context and a mask over it: inputs that are equally long along their second axis."""
        contexts = [name for name, role in self.of.items() if role == CONTEXT]
        masks = [name for name in contexts if any(word in name for word in _MASKS)]
        pairs = []
        for mask in masks:
            lengths = [
                name for name in contexts if name not in masks and _length(examples, name) == _length(examples, mask)
            ]
            if len(lengths) == 1:
                pairs.append((lengths[0], mask))
        return pairs

    def contexts(self, examples: Mapping[str, Tensor]) -> list[list[str]]:
        """Return the contexts, each with the masks over it."""
        masks = {mask: context for context, mask in self.same_lengths(examples)}
        names = [name for name, role in self.of.items() if role == CONTEXT and name not in masks]
        return [[name, *(mask for mask, context in masks.items() if context == name)] for name in names]

    def with_fixed(self, names: Collection[str]) -> Roles:
        """Return the roles if some inputs are fixed in size."""
        return replace(self, of={name: FIXED if name in names else role for name, role in self.of.items()})

    def triangle(self, name: str, like: Tensor, rows: Any, tokens: Any) -> Tensor:
        """Return a causal mask like an example of it, for any number of rows and tokens."""
        seen, hidden = (torch.tensor(value, dtype=like.dtype) for value in self.fills[name])
        mask = torch.where(torch.ones(tokens, tokens, dtype=torch.bool).tril(), seen, hidden)
        return mask.expand(*(rows if size > 1 else 1 for size in like.shape[:-2]), tokens, tokens)

    @property
    def streamed(self) -> list[str]:
        """The inputs that a call takes an entry of for each of its tokens."""
        return [name for name, role in self.of.items() if role == STREAM]


def find_roles(examples: Mapping[str, Tensor], run: Run) -> Roles:
    """Determine what each input is.

    Args:
        examples: the inputs by name.
        run: runs the model on inputs by name.

    Raises:
        InputError: no input holds tokens, a mask leaves some out, or rows depend on each other.
    """
    result = run(examples)
    last = _last_of(examples, result)
    count = _output_length(result) if last is None else examples[last].shape[1]
    sequences = [name for name, tensor in examples.items() if _is_sequence(name, tensor) and tensor.shape[1] == count]
    if not sequences:
        shapes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in examples.items())
        raise InputError(
            f"with `stateful`, an input must hold the tokens, (batch, tokens) or (batch, tokens, width), and the first "
            f"output one entry for each; the outputs have {count} tokens, the inputs are {shapes}",
            _hint(examples, count),
        )
    main = last or _main(examples, sequences, count, run)
    rows = examples[main].shape[0]
    found: dict[str, str] = {}
    fills: dict[str, Any] = {}
    flat = set()
    others = _alone(examples, sequences, count, run) if last is None else []
    of_contexts = _masks_of_contexts(examples, main, run)
    for name, tensor in examples.items():
        if name == main:
            found[name] = STREAM
        elif _are_positions(name, tensor, count):
            found[name] = POSITIONS
            flat |= {name} if tensor.dim() == 1 else set()
        elif _is_of_pairs(name, tensor, count):
            found[name] = TRIANGLE
            fills[name] = _triangle(name, tensor, rows)
        elif _is_mask_of_context(name, tensor) or name in of_contexts:
            found[name] = CONTEXT
        elif _is_mask(name, tensor, count):
            found[name] = VALID
            fills[name] = _fill(name, tensor)
        elif _is_sequence(name, tensor):
            found[name] = STREAM if tensor.shape[1] == count and main not in others else CONTEXT
        else:
            found[name] = FIXED
    roles = Roles(found, main, rows, count, fills, frozenset(flat), last is not None)
    _check_rows(examples, roles, run)
    roles = roles.with_fixed(_fixed_contexts(examples, roles, run))
    return replace(roles, aside=_aside(examples, roles, run, result))


def _check_rows(examples: Mapping[str, Tensor], roles: Roles, run: Run) -> None:
    """Raise InputError if what a row gives changes with the tokens of another."""
    rows = {name: repeated(tensor, 0, 2) for name, tensor in examples.items() if roles[name] in {STREAM, CONTEXT}}
    several = {**examples, **(rows if roles.rows == 1 else {})}
    changed = {name: torch.cat([several[name][:1].flip(1), several[name][1:]]) for name in roles.streamed}
    try:
        found = [list(named_outputs(run(feed)).values()) for feed in (several, {**several, **changed})]
    except InputError:
        return  # a model of one row
    for one, other in zip(*found, strict=True):
        if one.dim() and one.is_floating_point() and not torch.allclose(one[1:], other[1:], rtol=1e-3, atol=1e-5):
            raise mixes_rows(roles.main)


def _aside(examples: Mapping[str, Tensor], roles: Roles, run: Run, result: Any) -> frozenset[str]:
    """Return the outputs that other tokens do not change, such as an encoder's, if there is a context to depend on."""
    if CONTEXT not in roles.of.values():
        return frozenset()
    changed = {name: examples[name].flip(1).roll(1, 1) for name in roles.streamed}
    found, others = named_outputs(result), named_outputs(run({**examples, **changed}))
    same = {name for name, value in found.items() if torch.equal(value, others[name])}
    return frozenset(same) if len(same) < len(found) else frozenset()


def mixes_rows(name: str, place: str = "") -> InputError:
    """Return the error for a model in which a row's outputs depend on other rows, given the input of the tokens."""
    return InputError(
        f"with `stateful`, each row of {name} is a sequence by itself, but here the outputs of a row depend on "
        f"others{place}",
        "Let the model take (batch, tokens), not (tokens, batch), and mix nothing across the batch",
    )


def _fixed_contexts(examples: Mapping[str, Tensor], roles: Roles, run: Run) -> set[str]:
    """Return the contexts that have a size other than which the model refuses, such as that of a table."""
    fixed: set[str] = set()
    for names in roles.contexts(examples):
        resized = {name: repeated(examples[name], 1, CONTEXT_TOKENS) for name in names}
        try:
            run({**examples, **resized})
        except InputError:
            fixed |= set(names)
    return fixed


def _hint(examples: Mapping[str, Tensor], count: int) -> str:
    """Return what to do if no input has as many tokens as the output."""
    sequences = {name: tensor for name, tensor in examples.items() if _is_sequence(name, tensor)}
    for name, tensor in sequences.items():
        if tensor.shape[0] == count:
            return f"If {name} is (tokens, batch), let the model take (batch, tokens) and transpose it"
    longest = max((tensor.shape[1] for tensor in sequences.values()), default=0)
    if 1 < count < longest:
        return f"If the model keeps only the last {count} tokens, give an example of no more"
    return "Return an output (batch, tokens, ...)"


def _last_of(examples: Mapping[str, Tensor], result: Any) -> str | None:
    """Return the only sequence among the inputs if a model returns nothing but the output of its last token."""
    outputs = list(named_outputs(result).values())
    sequences = [name for name, tensor in examples.items() if _is_sequence(name, tensor)]
    sequences = [name for name in sequences if not _are_positions(name, examples[name], examples[name].shape[1])]
    if len(sequences) != 1 or not outputs or examples[sequences[0]].shape[1] < 2:
        return None
    rows, count = examples[sequences[0]].shape[:2]
    shapes = [tuple(output.shape) for output in outputs]
    whole = any(len(shape) > 2 and shape[1] == count for shape in shapes)
    single = all(
        shape[:1] == (rows,) and (len(shape) == _LEAST_RANK or (len(shape) > _LEAST_RANK and shape[1] == 1))
        for shape in shapes
    )
    return sequences[0] if single and not whole else None


def _length(examples: Mapping[str, Tensor], name: str) -> int:
    return examples[name].shape[1]


def _output_length(result: Any) -> int:
    outputs = list(named_outputs(result).values())
    if not outputs or outputs[0].dim() < _LEAST_RANK:
        raise InputError(
            "with `stateful`, the first output must have an entry for each token, (batch, tokens, ...)",
            "Return the logits of every token",
        )
    return outputs[0].shape[1]


def _is_sequence(name: str, tensor: Tensor) -> bool:
    """Return whether an input may be ids (batch, tokens) or vectors (batch, tokens, width)."""
    if any(word in name for word in _MASKS):
        return False
    ids = tensor.dim() == _LEAST_RANK and not tensor.is_floating_point() and tensor.dtype != torch.bool
    return ids or tensor.dim() == 3


def _main(examples: Mapping[str, Tensor], sequences: list[str], count: int, run: Run) -> str:
    """Return the input of the tokens: of several sequences, the one that determines the output's length by itself."""
    candidates = [name for name in sequences if not _are_positions(name, examples[name], count)] or sequences
    alone = _alone(examples, candidates, count, run)
    return alone[0] if alone else candidates[0]


def _alone(examples: Mapping[str, Tensor], candidates: list[str], count: int, run: Run) -> list[str]:
    """Return which of several sequences determine the output's length by themselves."""
    if len(candidates) < 2:
        return []
    found = []
    for name in candidates:
        tensor = examples[name]
        longer = tensor.index_select(1, torch.arange(count + 1) % count)
        try:
            length = _output_length(run({**examples, name: longer}))
        except InputError:
            continue
        if length == count + 1:
            found.append(name)
    return found


def _are_positions(name: str, tensor: Tensor, count: int) -> bool:
    """Return whether an input holds the positions 0, 1 and so on of the tokens."""
    if tensor.is_floating_point() or tensor.dtype == torch.bool or not any(word in name for word in _POSITIONS):
        return False
    expected = torch.arange(count, dtype=tensor.dtype)
    return tensor.dim() in {1, 2} and tensor.shape[-1] == count and bool((tensor == expected).all())


def _is_mask(name: str, tensor: Tensor, count: int) -> bool:
    return any(word in name for word in _MASKS) and tensor.dim() == _LEAST_RANK and tensor.shape[1] == count


def _is_mask_of_context(name: str, tensor: Tensor) -> bool:
    """Return whether an input is a mask over the tokens of another sequence, by the names that torch and others use."""
    return (
        any(word in name for word in _MASKS)
        and any(word in name for word in _OF_CONTEXTS)
        and tensor.dim() == _LEAST_RANK
    )


def _is_of_pairs(name: str, tensor: Tensor, count: int) -> bool:
    """Return whether an input is a mask that has an entry for each pair of tokens, (..., tokens, tokens)."""
    named = any(word in name for word in _MASKS)
    return named and tensor.shape[-2:] == (count, count) and (tensor.dim() > _LEAST_RANK or not _is_even(tensor))


def _is_even(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _triangle(name: str, tensor: Tensor, rows: int) -> tuple[Any, Any]:
    """Return a causal mask's value where a token sees another, and where it does not.

    Raises:
        InputError: it is another mask.
    """
    lower = torch.ones(tensor.shape[-2:], dtype=torch.bool).tril()
    seen, hidden = tensor[..., lower], tensor[..., ~lower]
    leading = tensor.shape[:-2]
    shared = all(size == 1 for size in leading[1:]) and leading[:1] in {(), (1,), (rows,)}
    if not (shared and hidden.numel() and _is_even(seen) and _is_even(hidden)):
        raise InputError(
            f"with `stateful`, an input that says which tokens see which must be a causal mask, the same for all rows "
            f"and heads, and the example of {name} is another one, {'x'.join(map(str, tensor.shape))}",
            "Give the lower triangle, (tokens, tokens) or (1, tokens, tokens), or let the model make its mask",
        )
    return seen.flatten()[0].item(), hidden.flatten()[0].item()


def _masks_of_contexts(examples: Mapping[str, Tensor], main: str, run: Run) -> set[str]:
    """Return the masks that go with another sequence than that of the tokens: the one that must be as long as they are.

    Hugging Face's encoder-decoders call the mask of the source attention_mask.
    """
    found = set()
    masks = [name for name, tensor in examples.items() if _is_plain_mask(name, tensor)]
    others = [name for name, tensor in examples.items() if _is_sequence(name, tensor) and name != main]
    for mask in masks:
        length = _length(examples, mask)
        for other in others:
            if _length(examples, other) != length:
                continue
            together = {name: repeated(examples[name], 1, length + 1) for name in (mask, other)}
            alone = {other: together[other]}
            if _runs(run, {**examples, **together}) and not _runs(run, {**examples, **alone}):
                found.add(mask)
    return found


def _runs(run: Run, feed: Mapping[str, Tensor]) -> bool:
    try:
        run(feed)
    except InputError:
        return False
    return True


def _is_plain_mask(name: str, tensor: Tensor) -> bool:
    return any(word in name for word in _MASKS) and tensor.dim() == _LEAST_RANK and tensor.shape[1] > 1


def _fill(name: str, tensor: Tensor) -> Any:
    """Return the value of a mask at every token.

    Raises:
        InputError: it leaves some out.
    """
    first = tensor.flatten()[0].item()
    inverted = any(word in name for word in _INVERTED)
    if bool((tensor != first).any()) or bool(first) == inverted:
        raise InputError(
            f"with `stateful`, every token of a call counts, but the example of {name} leaves some out",
            f"Give one of {'zeros' if inverted else 'ones'}",
        )
    return first
