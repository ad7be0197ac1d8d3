"""Trainers' files with several sets of weights: averages by name and in lists, hostile ones among them."""

from __future__ import annotations

from random import Random

from tests.fuzzing.cases import Case, Changes, Place
from tests.fuzzing.formats.checkpoint import good, packed
from tests.fuzzing.mutations import pickles, values
from tests.fuzzing.seeds import Seeds

_KEYS = ("ema", "model_ema", "ema_params1", "callbacks", "current_model_state", "averaging_state", "best", "n_averaged")
_ASKED = ("ema", "ema1", "model", "state_dict", "ema.0", "", ".", "module", "po_coeff")
_Items = list[tuple[bytes, bytes]]


def make(random: Random, _: Seeds, place: Place) -> Case:
    """Return `inspect` of a file with a valid state dict and others, mostly asking for one of the others."""
    changes = Changes()
    items, storages = good()
    outer: _Items = [(pickles.text("state_dict"), pickles.dict_(*items))]
    for _ in range(random.choice((1, 1, 2, 3))):
        key = random.choice((*_KEYS, *_KEYS, values.name(random)))
        content, what = _others(random, items, place)
        changes.note(f"{key[:40]!r} is {what}")
        outer.append((pickles.text(key), content))
    random.shuffle(outer)
    file = place.inputs / "trainer.ckpt"
    file.write_bytes(packed(pickles.START + pickles.dict_(*outer) + pickles.END, storages))
    asked = random.choice((*_ASKED, values.name(random)))
    asked = "".join(c for c in asked if c.isprintable())[:1000]
    arguments = ("inspect", str(file), *(("--weights", asked) if random.random() < 0.7 else ()))
    return Case(arguments, str(changes))


def _others(random: Random, items: _Items, place: Place) -> tuple[bytes, str]:
    """Return something in place of a set of weights: a state dict or a list, changed, nested, or something else."""
    hostile, what = pickles.hostile(random, place)
    changed = list(items)
    changed[random.randrange(len(changed))] = random.choice(items)
    tensors = [value for _, value in random.choice((items, changed, items[1:]))]
    if random.random() < 0.3:
        tensors.insert(random.randrange(len(tensors)), hostile)
    prefix = random.choice(("", "module.", "ema_model.", "n_averaged.", "a.b.", values.name(random)[:100]))
    named = [(pickles.text(prefix + name), value) for (name, _), value in zip(_names(items), tensors, strict=False)]
    table, row = pickles.dict_(*named), pickles.list_(*tensors)
    nested = pickles.dict_(*[(pickles.text(random.choice(_KEYS)), random.choice((table, row))) for _ in range(2)])
    return random.choice(
        (
            (table, "a state dict"),
            (row, "a list"),
            (nested, "nested"),
            (pickles.list_(table, row), "both"),
            (hostile, what),
        )
    )


def _names(items: _Items) -> list[tuple[str, bytes]]:
    """Return the names in pickled items, as text."""
    return [(name[5:].decode(), value) for name, value in items]
