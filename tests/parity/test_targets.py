"""Expected outputs are computed when they are needed, and no two large ones are held at once."""

from __future__ import annotations

import weakref

import numpy as np

from pom_export.parity import targets
from pom_export.parity.case import Case
from pom_export.parity.measure import measure
from pom_export.parity.targets import Target, Targets

SMALL, LARGE = 10, targets._KEPT + 1


def test_small_targets_are_kept_and_large_ones_are_not() -> None:
    computed: list[str] = []
    large: list[weakref.ref[np.ndarray]] = []

    def compute(case: Case) -> Target:
        assert not any(reference() is not None for reference in large)
        computed.append(case.name)
        output = np.broadcast_to(np.zeros(1), LARGE).view() if case.name == "large" else np.zeros(SMALL)
        if case.name == "large":
            large.append(weakref.ref(output))
        return Target({"y": output})

    found = Targets([Case("small", {}), Case("large", {}), Case("large", {})], compute)
    assert len(found) == 3
    assert computed == []
    for _ in range(2):
        for index in range(3):
            assert found[index].outputs["y"].size >= SMALL
    assert computed == ["small", "large", "large", "large", "large"]


def test_pieces_add_up_to_the_whole() -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((3, 500_000))
    actual = (reference + 1e-3 * random.standard_normal(reference.shape)).astype(np.float32)
    found, error = measure(actual, reference), actual - reference
    assert found.count == reference.size
    assert found.max_abs == np.abs(error).max()
    np.testing.assert_allclose(found.rms, np.sqrt(np.mean(error**2)))
    np.testing.assert_allclose(found.reference_rms, np.sqrt(np.mean(reference**2)))
    np.testing.assert_allclose(found.cosine, 1 - 5e-7, rtol=1e-8)
    actual[2, -1] = np.nan
    assert measure(actual, reference).odd
