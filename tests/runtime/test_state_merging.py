"""The lengths of merged states: exact, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pom_export.errors import InputError
from pom_export.runtime.state_merging import merge_states

LONGEST = 2**63 - 1


def pair(*lengths: int, dtype: Any = np.int64) -> tuple[Any, Any]:
    return np.ones((len(lengths), 1, 2, 4), np.float32), np.array(lengths, dtype)


def test_lengths_add_up_exactly() -> None:
    _, lengths = merge_states(pair(2**53, 0), pair(1, LONGEST - 3), pair(2, 3))
    assert lengths.tolist() == [2**53 + 3, LONGEST]
    assert lengths.dtype == np.int64
    assert merge_states(pair())[1].shape == (0,)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([pair(LONGEST), pair(1)], "states of 9223372036854775808 tokens cannot be merged"),
        ([pair(2**64 - 1, dtype=np.uint64)], "states of 18446744073709551615 tokens"),
        ([pair(5), pair(-1)], "past_length has -1"),
    ],
)
def test_lengths_that_no_state_has_are_refused(pairs: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        merge_states(*pairs)
