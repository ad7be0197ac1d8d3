"""How tokens are sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pom_export.errors import InputError
from pom_export.text.sampling import Sampling, choose_each

LOGITS = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)


def frequencies(sampling: Sampling, logits: Any, count: int = 20000) -> Any:
    chosen = [sampling.choose(logits, number)[0] for number in range(count)]
    return np.bincount(chosen, minlength=logits.shape[-1]) / count


def softmax(scores: Any) -> Any:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def test_temperature_0_takes_the_likeliest_and_of_equal_ones_the_first() -> None:
    logits = np.array([[1.0, 3.0, 3.0, 2.0], [5.0, 1.0, 5.0, -np.inf]], np.float16)
    assert Sampling(temperature=0).choose(logits, 0).tolist() == [1, 0]


@pytest.mark.slow
def test_tokens_are_as_frequent_as_they_are_probable() -> None:
    logits = LOGITS[:, :8]
    for temperature in (0.5, 1.0, 2.0):
        expected = softmax(logits[0].astype(np.float64) / temperature)
        found = frequencies(Sampling(temperature=temperature), logits)
        assert np.abs(found - expected).max() < 0.015


def test_top_k_chooses_from_the_k_likeliest() -> None:
    found = frequencies(Sampling(top_k=3), LOGITS, 3000)
    likeliest = np.sort(np.argsort(-LOGITS[0])[:3])
    assert np.flatnonzero(found).tolist() == likeliest.tolist()
    assert np.abs(found[likeliest] - softmax(LOGITS[0, likeliest])).max() < 0.05
    assert frequencies(Sampling(top_k=1), LOGITS, 50).argmax() == LOGITS[0].argmax()
    np.testing.assert_array_equal(frequencies(Sampling(top_k=1000), LOGITS, 50), frequencies(Sampling(), LOGITS, 50))


def test_ties_at_the_border_go_to_the_lowest_ids() -> None:
    logits = np.array([[1.0, 2.0, 1.0, 1.0, 0.0]])
    assert np.flatnonzero(frequencies(Sampling(top_k=3), logits, 500)).tolist() == [0, 1, 2]
    even = np.zeros((1, 4))
    assert np.flatnonzero(frequencies(Sampling(top_p=0.5), even, 500)).tolist() == [0, 1]


def test_top_p_chooses_from_the_fewest_that_reach_the_probability() -> None:
    logits = np.log(np.array([[0.1, 0.5, 0.15, 0.25]]))
    for share, kept in ((0.01, [1]), (0.49, [1]), (0.74, [1, 3]), (0.76, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        found = frequencies(Sampling(top_p=share), logits, 2000)
        assert np.flatnonzero(found).tolist() == kept
    # Together: first the k likeliest, then the fewest of them that reach the probability.
    assert np.flatnonzero(frequencies(Sampling(top_k=2, top_p=0.9), logits, 500)).tolist() == [1, 3]


@pytest.mark.parametrize("spread", [3.0, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.3, 1.0))])
def test_top_p_among_many_tokens_and_ties(spread: float) -> None:
    # So that the probability is in a few of them, or in many.
    logits = np.round(np.random.default_rng(3).normal(size=(1, 300)) * spread, 1)
    order = np.argsort(-logits[0], kind="stable")
    before = softmax(logits[0])[order].cumsum() - softmax(logits[0])[order]
    for share in (0.5, 0.8):
        kept = set(order[before < share].tolist())
        numbers = range(3000)
        chosen = {int(Sampling(top_p=share).choose(logits, number)[0]) for number in numbers}
        assert chosen <= kept
        assert len(chosen) > 0.95 * len(kept)
        # The last one is chosen by the largest random number.
        assert order[len(kept) - 1] in chosen or len(kept) > 100


def test_rows_are_sampled_independently_and_alike() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 300))
    for sampling in (Sampling(7), Sampling(7, top_k=20), Sampling(7, top_p=0.7), Sampling(7, 0.3, 50, 0.9)):
        chosen = sampling.choose(logits, 3)
        assert chosen.shape == (5,)
        assert chosen[0] == sampling.choose(logits[:1], 3)[0]
        assert chosen.tolist() == sampling.choose(logits, 3).tolist()
    assert len({tuple(Sampling(7).choose(logits, number)) for number in range(20)}) == 20
    assert Sampling(7).choose(logits, 0).tolist() != Sampling(8).choose(logits, 0).tolist()


def test_rows_with_settings_of_their_own_are_sampled_as_each_alone() -> None:
    random = np.random.default_rng(2)
    kinds = ({"temperature": 0}, {}, {"top_k": 3}, {"top_k": 20, "top_p": 0.6}, {"top_p": 0.3, "temperature": 0.2})
    samplings = [Sampling(seed=int(random.integers(2**63)) * 2 + 1, **kinds[row % 5]) for row in range(300)]
    numbers = [int(number) for number in random.integers(0, 2**62, 300)]
    # More than a block, and half precision.
    for logits in (random.normal(size=(300, 400)), random.normal(size=(300, 50)).astype(np.float16)):
        chosen = choose_each(logits, samplings, numbers)
        alone = [s.choose(logits[i : i + 1], numbers[i])[0] for i, s in enumerate(samplings)]
        assert chosen.tolist() == alone


def test_variants_have_the_seeds_that_follow() -> None:
    assert Sampling(7, 0.5).variant(0) == Sampling(7, 0.5)
    assert Sampling(2**64 - 1, 0.5, 3).variant(2) == Sampling(1, 0.5, 3)


def test_what_is_impossible_is_never_chosen() -> None:
    logits = np.full((1, 6), -np.inf)
    logits[0, [1, 4]] = 0.0
    assert np.flatnonzero(frequencies(Sampling(), logits, 500)).tolist() == [1, 4]
    # So cold that the quotient overflows.
    assert np.flatnonzero(frequencies(Sampling(temperature=1e-308), LOGITS, 50)).tolist() == [LOGITS.argmax()]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = np.full((1, 3), value)
    for sampling in (Sampling(), Sampling(temperature=0)):
        with pytest.raises(InputError, match="logits are not finite"):
            sampling.choose(logits, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "`temperature` must be 0 or more, got -1.0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"temperature": float("inf")}, "got inf"),
        ({"top_k": 0}, "`top_k` must be at least 1, got 0"),
        ({"top_p": 0.0}, "`top_p` must be above 0"),
        ({"top_p": 1.1}, "`top_p` must be above 0 and at most 1, got 1.1"),
        ({"top_p": float("nan")}, "got nan"),
        ({"seed": -1}, "`seed` must be 0 to"),
        ({"seed": 2**64}, "`seed` must be 0 to"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)
