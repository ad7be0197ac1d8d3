"""Suggestions of what a user likely meant."""

from __future__ import annotations

from pom_export.suggestions import did_you_mean


def test_the_nearest_names_are_offered() -> None:
    assert did_you_mean("casual", ["none", "causal", "padding"]) == "Did you mean 'causal'?"
    assert did_you_mean("EMA", ["ema", "model"]) == "Did you mean 'ema'?"
    assert did_you_mean("ema3", ["ema1", "ema2", "model"]) == "Did you mean 'ema2' or 'ema1'?"
    assert did_you_mean("zzz", ["none", "causal"]) == ""
    assert did_you_mean("x", []) == ""
