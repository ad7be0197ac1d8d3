"""Writes pickles opcode by opcode, as no pickler would, and spoils existing ones."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from random import Random

from tests.fuzzing.cases import CALL, CANARY, Place
from tests.fuzzing.mutations import raw, values

START, END = b"\x80\x02", b"."
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
EMPTY_DICT, EMPTY_LIST = b"}", b"]"
# The functions that torch's own reader calls.
STORAGES = tuple(
    f"{name}Storage"
    for name in ("Float", "Double", "Half", "BFloat16", "Long", "Byte", "Bool", "ComplexFloat", "QInt8", "Untyped")
)
_BIG = 10**10


def text(value: str) -> bytes:
    """Return the opcodes that push a text."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """Return the opcodes that push a number of any size."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    width = value.bit_length() // 8 + 1
    return b"\x8b" + struct.pack("<i", width) + value.to_bytes(width, "little", signed=True)


def numbers(*several: int) -> bytes:
    """Return the opcodes that push a tuple of numbers."""
    return tuple_(*map(number, several))


def tuple_(*items: bytes) -> bytes:
    """Return the opcodes that push a tuple."""
    return b"(" + b"".join(items) + b"t"


def list_(*items: bytes) -> bytes:
    """Return the opcodes that push a list."""
    return b"](" + b"".join(items) + b"e"


def dict_(*items: tuple[bytes, bytes]) -> bytes:
    """Return the opcodes that push a dict."""
    return b"}(" + b"".join(key + value for key, value in items) + b"u"


def name(module: str, attribute: str) -> bytes:
    """Return the opcodes that push the object with this name."""
    return f"c{module}\n{attribute}\n".encode("utf-8", "surrogatepass")


def call(function: bytes, *arguments: bytes) -> bytes:
    """Return the opcodes that push the result of a call."""
    return function + tuple_(*arguments) + b"R"


def storage(key: str, elements: int, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    """Return the opcodes that push a storage of a torch archive."""
    return tuple_(text("storage"), name("torch", kind), text(key), text(location), number(elements)) + b"Q"


def tensor(stored: bytes, size: tuple[int, ...], stride: tuple[int, ...] | None = None, offset: int = 0) -> bytes:
    """Return the opcodes that push a tensor over a storage."""
    if stride is None:
        steps, step = [], 1
        for extent in reversed(size):
            steps.append(step)
            step *= max(extent, 1)
        stride = tuple(reversed(steps))
    hooks = call(name("collections", "OrderedDict"))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        stored,
        number(offset),
        numbers(*size),
        numbers(*stride),
        FALSE,
        hooks,
    )


def hostile(random: Random, place: Place) -> tuple[bytes, str]:
    """Return opcodes that push a value that no state dict needs, and what the value is."""
    what, make = random.choice(_HOSTILE)
    return make(random, place), what


def _runs(random: Random, place: Place) -> bytes:
    """Call a Python function that a pickle has no business calling."""
    touch = text(f"touch {place.precious / 'new'}")
    return random.choice(
        (
            call(name("os", "system"), touch),
            call(name("posix", "system"), touch),
            call(name("subprocess", "check_output"), list_(text("id"))),
            call(name("builtins", "eval"), text(CALL)),
            call(name("builtins", "exec"), text(CALL)),
            call(name("builtins", "__import__"), text(CANARY)),
            call(name("builtins", "open"), text(str(place.precious / "file")), text("w")),
            call(name("builtins", "getattr"), name("os", "system"), text("__call__")),
            call(name("importlib", "import_module"), text(CANARY)),
            call(name(CANARY, "f"), text("x")),
            call(name("torch", "load"), text(str(place.precious / "file"))),
            call(name("torch.hub", "load"), text("x"), text("y")),
            call(name("torch", "ops.aten.from_file"), text(str(place.precious / "file"))),
            call(name("numpy", "load"), text(str(place.precious / "file"))),
            call(name("pathlib", "PosixPath"), text(str(place.precious / "file"))),
            call(name("functools", "partial"), name("os", "system"), touch),
            b"(" + touch + b"ios\nsystem\n",
            name("os", "system") + touch + b"\x85R",
            text("os") + text("system") + b"\x93" + tuple_(touch) + b"R",
            b"\x82\x01" + tuple_(touch) + b"R",
        )
    )


def _large(random: Random, _: Place) -> bytes:
    """Call an allowed function with sizes that no memory holds."""
    size, digits = number(_BIG), text("x" * 100)
    return random.choice(
        (
            call(name("builtins", "bytearray"), size),
            call(name("torch", "Size"), numbers(*values.shape(random))),
            call(name("torch", random.choice(STORAGES)), size),
            call(name("torch.storage", "UntypedStorage"), size),
            call(name("torch", "FloatTensor"), size),
            call(name("torch", "Tensor"), size),
            call(name("torch.nn.parameter", "Parameter"), call(name("torch", "Tensor"), size)),
            call(name("_codecs", "encode"), digits, text(random.choice(("punycode", "zlib", "idna", CANARY)))),
            call(name("collections", "Counter"), dict_((text("a"), number(10**4000)))),
            call(name("builtins", "complex"), number(10**400)),
            call(name("torch", "device"), text(random.choice(("cuda:0", "meta", "privateuseone:7", "x" * 10**6)))),
            call(name("torch._utils", "_rebuild_parameter"), number(1), TRUE, NONE),
            number(random.choice((2**63, 10**4000, 2 ** (8 * 10**6)))),
        )
    )


def _rebuilt(random: Random, _: Place) -> bytes:
    """Call torch's constructors of other kinds of tensors."""
    float32 = name("torch", "float32")
    size = numbers(*values.shape(random))
    strides = numbers(*(values.integer(random) for _ in range(2)))
    inner = tensor(storage("0", 4), (2, 2))
    return random.choice(
        (
            call(name("torch._utils", "_rebuild_meta_tensor_no_storage"), float32, size, strides, FALSE),
            call(name("torch._utils", "_rebuild_sparse_tensor"), inner, tuple_(inner, inner, size)),
            call(name("torch._utils", "_rebuild_sparse_tensor"), name("torch", "sparse_coo"),
                 tuple_(inner, inner, size, TRUE)),
            call(name("torch._utils", "_rebuild_nested_tensor"), inner, inner, inner, inner),
            call(name("torch._utils", "_rebuild_qtensor"), storage("0", 4, "QInt8Storage"), number(0), size, strides,
                 tuple_(name("torch", "per_tensor_affine"), number(1), number(0)), FALSE, NONE),
            call(name("torch._utils", "_rebuild_device_tensor_from_numpy"), inner, float32, text("cpu"), FALSE),
            call(name("torch._utils", "_rebuild_wrapper_subclass"), name("torch", "Tensor"), float32, size, strides,
                 number(0), name("torch", "strided"), text("cpu"), FALSE),
            call(name("torch._tensor", "_rebuild_from_type_v2"), name("torch._utils", "_rebuild_tensor_v2"),
                 name("torch", "Tensor"), tuple_(storage("0", 4), number(0), size, strides, FALSE, NONE), EMPTY_DICT),
            call(name("torch._utils", "_rebuild_tensor_v3"), storage("0", 4, "UntypedStorage"), number(0), size,
                 strides, FALSE, NONE, float32),
            call(name("torch._utils", "_rebuild_tensor"), storage("0", 4), number(0), size, strides),
        )
    )  # fmt: skip


def _deep(random: Random, _: Place) -> bytes:
    count = random.choice((1000, 100_000, 10**6))
    return random.choice(
        (
            EMPTY_LIST * count + b"a" * (count - 1),
            b"(" * count + b"t" * count,
            EMPTY_DICT + b"".join(b"K\0" + EMPTY_DICT for _ in range(count // 10)) + b"s" * (count // 10),
            b"(" * count + b"0" * count + NONE,
            NONE + b"\x85" * count,
        )
    )


def _shared(random: Random, _: Place) -> bytes:
    """Nest lists, each of which holds the previous one many times, or one that holds itself."""
    if random.random() < 0.3:
        return EMPTY_LIST + b"q\7" + b"(" + b"h\7" * 50 + b"e"
    kind = random.choice((b"l", b"t"))
    levels = (b"q" + bytes([i]) + b"0(" + (b"h" + bytes([i])) * 30 + kind for i in range(1, 12))
    return EMPTY_LIST + b"".join(levels)


def _memo(random: Random, _: Place) -> bytes:
    far = struct.pack("<I", random.choice((2**31 - 1, 2**32 - 1, 10**9)))
    return random.choice((NONE + b"r" + far, b"j" + far, NONE + b"p" + b"9" * 5000 + b"\n", b"g-1\n", b"h\xff"))


def _lengths(random: Random, _: Place) -> bytes:
    size = struct.pack("<Q", random.choice((2**62, 2**63, 10**12, 2**64 - 1, 10**10)))
    return random.choice(
        (
            b"\x8e" + size + b"x",
            b"\x8d" + size + b"x",
            b"\x96" + size + b"x",
            b"\x95" + size + NONE,
            b"X" + size[:4] + b"x",
            b"B" + b"\xff\xff\xff\x7f" + b"x",
            b"\x8b" + b"\xff\xff\xff\x7f" + b"x",
            b"\x8b" + b"\xff\xff\xff\xff" + b"x",
            b"I" + b"9" * 10_000 + b"\n",
            b"L" + b"9" * 10_000 + b"L\n",
            b"F" + b"9" * 10_000 + b"\n",
            b"S'" + b"\\x41" * 10_000 + b"'\n",
            b"V" + b"\\ud800" + b"\n",
        )
    )


def _built(random: Random, _: Place) -> bytes:
    """Set the state of an object that takes one."""
    states = (
        dict_((text("__class__"), name("os", "system"))),
        dict_((text("__dict__"), NONE)),
        dict_((text("__reduce__"), text("x"))),
        tuple_(NONE, dict_((text("x"), NONE))),
        dict_((text("x\nresult  passed"), number(1))),
        number(1),
    )
    things = (
        call(name("collections", "OrderedDict")),
        tensor(storage("0", 4), (4,)),
        call(name("argparse", "Namespace")),
    )
    return random.choice(things) + random.choice(states) + b"b"


def _odd(random: Random, _: Place) -> bytes:
    return random.choice(
        (
            number(values.integer(random)),
            text(values.name(random)),
            list_(*(text(values.name(random)) for _ in range(3))),
            tuple_(text("x")) + b"Q",
            text("x") + b"Q",
            tuple_(text("storage"), name("torch", "FloatStorage"), text("9"), text("cpu"), number(4)) + b"Q",
            tuple_(text("storage"), name("os", "system"), text("0"), text("cpu"), number(4)) + b"Q",
            tuple_(text("storage"), name("torch", "FloatStorage"), text("../../0"), text("cpu"), number(4)) + b"Q",
            storage("0", values.integer(random)),
            b"Pnumber\n",
            name("torch", "Tensor"),
            b"\x8f",
            b"0",
            b"1",
            b"s",
            b"R",
            END,
        )
    )


_HOSTILE: tuple[tuple[str, Callable[[Random, Place], bytes]], ...] = (
    *(("a call", _runs), ("a call", _runs), ("a large thing", _large), ("a kind of tensor", _rebuilt)),
    *(("a kind of tensor", _rebuilt), ("depth", _deep), ("sharing", _shared), ("the memo", _memo)),
    *(("a length", _lengths), ("a state", _built), ("an odd thing", _odd)),
)


def spoil(random: Random, content: bytes, place: Place) -> tuple[bytes, str]:
    """Return a pickle with opcodes removed, doubled, swapped or inserted, and what was done."""
    opcodes = [(position, opcode.name) for opcode, _, position in pickletools.genops(content)]
    ends = [position for position, _ in opcodes[1:]] + [len(content)]
    pieces = [content[start:end] for (start, _), end in zip(opcodes, ends, strict=True)]
    done = []
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(pieces))
        action = random.randrange(6)
        done.append(f"{('less', 'twice', 'swap', 'more', 'bytes', 'other')[action]} at opcode {at}")
        if action == 0 and len(pieces) > 1:
            del pieces[at]
        elif action == 1:
            pieces.insert(at, pieces[at])
        elif action == 2:
            other = random.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif action == 3:
            pieces.insert(at, hostile(random, place)[0])
        elif action == 4:
            pieces[at] = raw.spoil(random, pieces[at])[0]
        else:
            pieces[at] = random.choice(pieces)
    return b"".join(pieces), ", ".join(done)
