"""The estimate of energy and power: its arithmetic, and that each figure says where it is from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from snncc.targets.dynapcnn.power import FIGURES, PER_SPIKE, PER_SYNOP, REST, Figure, estimate

OWN = Figure("measured here", 20.0, 30.0, "pJ", "a board")


def test_figures_say_where_they_are_from() -> None:
    assert all(figure.what and figure.unit and figure.source for figure in FIGURES)
    for figure in FIGURES:
        assert (figure.low is None) == (figure.high is None) == ("not published" in figure.source)
        assert figure.low is None or figure.high is None or 0 < figure.low <= figure.high


def test_what_is_derived() -> None:
    """By hand: 15.68 mW * 0.54 s / 2.9e6 and 46.38 mW * 0.54 s / 3.3e6; over 288 and 32 neurons."""
    assert (PER_SPIKE.low, PER_SPIKE.high) == pytest.approx((2.9197, 7.5895), rel=1e-4)
    assert (PER_SYNOP.low, PER_SYNOP.high) == pytest.approx((10.138, 237.17), rel=1e-4)
    assert PER_SPIKE.derived and PER_SYNOP.derived and not REST.derived


def test_estimate() -> None:
    """3 and 1 million operations in 0.1 s: 20 pJ each are 60 and 20 uJ, 0.6 and 0.2 mW; 0.42 mW at rest are 42 uJ."""
    rows = estimate({"conv": np.array([2e6, 4e6]), "linear": np.array([1e6, 1e6])}, 0.1, OWN)
    found: dict[str, dict[str, Any]] = {row["layer"]: row for row in rows}
    assert list(found) == ["conv", "linear", "at rest", "all"]
    keys = ("synops", "share", "energy_low", "energy_high", "power_low", "power_high")
    assert [found["conv"][key] for key in keys] == pytest.approx([3e6, 0.75, 60, 90, 0.6, 0.9])
    assert [found["linear"][key] for key in keys] == pytest.approx([1e6, 0.25, 20, 30, 0.2, 0.3])
    assert [found["at rest"][key] for key in keys] == pytest.approx([0, 0, 42, 42, 0.42, 0.42])
    assert [found["all"][key] for key in keys] == pytest.approx([4e6, 1, 122, 162, 1.22, 1.62])
    assert "a board" in found["conv"]["source"] and "estimate" in found["conv"]["source"]
    (conv, *_) = estimate({"conv": np.array([1e6])}, 0.1)
    assert "derived from" in conv["source"] and "Nature Communications" in conv["source"]


def test_a_silent_network_costs_what_rest_costs() -> None:
    *_, everything = estimate({"conv": np.zeros(3)}, 2.0)
    assert (everything["power_low"], everything["power_high"]) == pytest.approx((0.42, 0.42))


@pytest.mark.parametrize(
    ("seconds", "figure"), [(0.0, OWN), (float("nan"), OWN), (1.0, Figure("none", None, None, "pJ", ""))]
)
def test_refused(seconds: float, figure: Figure) -> None:
    with pytest.raises(ValueError, match="an estimate needs"):
        estimate({"conv": np.ones(1)}, seconds, figure)
