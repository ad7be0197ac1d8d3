"""Values that readers stumble over: names, numbers, sizes."""

from __future__ import annotations

from random import Random

from tests.fuzzing.cases import CALL, CANARY, Place

_LONG = 10**6
# Names that forge lines, move the cursor, or are not valid names.
NAMES = (
    "",
    " ",
    "x\nresult  passed",
    "x\r\nsha256  0",
    "\x1b[2J\x1b[31mred",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2028line\u2029paragraph",
    "nul\0nul",
    "tab\tbell\a\b\b\b",
    "n" * _LONG,
    "\n" * 2000,
    "\u0301" * 3000,
    "blocks.999999999999999999999.mixer.po_coeff",
    "blocks." + "9" * 5000 + ".x",
    "a." * 20_000,
    "module." * 5000,
    "../../precious/file",
    "/etc/passwd",
    "__proto__",
    "__class__",
    CALL,
    f"{CANARY}.f",
    "%s%n{0}{x!r}",
    "\\x1b[0m\\n",
    "&<script>alert(1)</script>",
)
# Half of a surrogate pair is valid in the text of JSON and Python, but not in UTF-8.
LONE_SURROGATE = "\ud800"
INTEGERS = (
    *(0, 1, -1, 2, 3, 7, 255, 256, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64),
    *(10**9, 10**12, 10**30, -(10**12), 10**4299),
)
FLOATS = (0.0, -0.0, 1e-45, 1e-320, 0.5, 3.0, 1e30, -1e30, 1e308, float("inf"), float("-inf"), float("nan"))
# Sizes of tensors that hold nothing, or far more than a file can.
SHAPES = (
    (),
    (0,),
    (1,),
    (-1,),
    (10**12, 0),
    (0, 10**12),
    (10**9, 10**9, 0),
    (2**31, 2**31),
    (2**63 - 1,),
    (2**32, 2**32),
    (10**9,),
    (10**10,),
    (1,) * 64,
    (1,) * 70,
    (2,) * 33,
    (0, -1),
    (-(2**63),),
)


def name(random: Random) -> str:
    """Return a hostile name."""
    return random.choice(NAMES)


def integer(random: Random) -> int:
    """Return a number at the edge of a range, or any small one."""
    return random.choice(INTEGERS) if random.random() < 0.7 else random.randrange(-100, 10_000)


def shape(random: Random) -> tuple[int, ...]:
    """Return a hostile shape."""
    if random.random() < 0.7:
        return random.choice(SHAPES)
    return tuple(integer(random) for _ in range(random.randrange(5)))


def path(random: Random, place: Place) -> str:
    """Return a path that a file has no business naming."""
    return random.choice(
        (
            str(place.precious / "file"),
            str(place.precious / "new"),
            "../precious/file",
            "../../../../../../../../etc/passwd",
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/mem",
            "..",
            ".",
            "",
            "nul\0nul",
            "n" * 5000,
            "a/" * 3000,
            f"{CANARY}.py",
            "\\\\host\\share",
            "file:///etc/passwd",
            "data://x",
        )
    )
