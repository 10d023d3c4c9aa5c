"""Intervals and tests against numbers worked out by hand, SciPy's own tests, and sweeps drawn from a known truth."""

import json
import math
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.confidence import any_false, covered, drawn_sweep, false_verdicts, flattered, kept_best, main
from orchestrator.results.cells import Cell, compare
from orchestrator.results.intervals import holm, interval, p_value, plus_minus, share_interval

numbers = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=8)


def mean_and_std(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1))


# --- by hand


def test_an_interval_worked_out_by_hand() -> None:
    # 2.0, 2.5, 3.0: the standard deviation is 0.5, and the t quantile of 97.5 % with two degrees of freedom
    # 4.302653.
    assert interval(0.5, 3) == pytest.approx(4.302653 * 0.5 / math.sqrt(3), rel=1e-5)


def test_a_paired_interval_worked_out_by_hand() -> None:
    """Differences 0.1, 0.2, 0.05: mean 0.11667, standard deviation 0.076376, half width 4.302653 * that / sqrt(3)."""
    cell = Cell("E4M3", ("grid",), values={"seed=1": 2.1, "seed=2": 2.3, "seed=3": 2.2})
    base = Cell("E4M3", ("adamw",), values={"seed=3": 2.15, "seed=2": 2.1, "seed=1": 2.0, "seed=9": 7.0})
    found = compare(cell, base)
    assert (found.n, found.why) == (3, None)
    assert found.difference == pytest.approx(0.116667, rel=1e-5)
    assert found.interval == pytest.approx(0.189729, rel=1e-5)
    # t = 2.6458 is the square root of 7; with two degrees of freedom p = 1 - t / sqrt(2 + t^2).
    assert found.p == pytest.approx(1 - math.sqrt(7) / 3, rel=1e-5)


def test_holms_adjustment_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


# --- by SciPy


@given(numbers)
def test_the_interval_and_its_test_are_scipys(values: list[float]) -> None:
    mean, std = mean_and_std(values)
    if std < 1e-9:
        return
    expected = scipy.stats.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert interval(std, len(values)) == pytest.approx((high - low) / 2)
    assert p_value(mean, std, len(values)) == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize(("mean", "p"), [(0.0, 1.0), (0.1, 0.0)])
def test_results_that_are_all_alike_are_sure(mean: float, p: float) -> None:
    assert interval(0.0, 3) == 0.0
    assert p_value(mean, 0.0, 3) == p


@pytest.mark.parametrize(("std", "n"), [(None, 1), (0.7, 2)])
def test_fewer_than_three_get_no_interval(std: float | None, n: int) -> None:
    assert interval(std, n) is None


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (3, 20), (50, 50)])
def test_the_interval_of_a_share_is_scipys_exact_one(hits: int, n: int) -> None:
    assert share_interval(hits, n) == pytest.approx(tuple(scipy.stats.binomtest(hits, n).proportion_ci(0.95, "exact")))


# --- digits


@pytest.mark.parametrize(
    ("value", "half", "shown"),
    [
        (0.0123, 0.0042, "0.012 ± 0.004"),
        (0.0123, 0.0014, "0.0123 ± 0.0014"),
        (1.234567, 0.0354, "1.235 ± 0.035"),
        (1.234567, 0.0355, "1.23 ± 0.04"),
        (0.5, 0.0096, "0.500 ± 0.010"),
        (2.0, 0.96, "2.0 ± 1.0"),
        (1234.5, 360.0, "1200 ± 400"),
        (0.0449, 0.0441, "0.045 ± 0.044"),
        (-0.0123, 0.0042, "-0.012 ± 0.004"),
        (0.1, 0.0, "0.1 ± 0"),
        (-0.001, 0.04, "0.00 ± 0.04"),
    ],
)
def test_a_difference_has_the_digits_that_its_interval_supports(value: float, half: float, shown: str) -> None:
    assert plus_minus(value, half) == shown


# --- on sweeps drawn from a known truth


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_hold_the_truth_in_ninety_five_of_a_hundred_sweeps(n: int) -> None:
    rng = np.random.default_rng(n)
    sweeps = [drawn_sweep(n, {"adamw": 1, "other": 1}, 1, rng) for _ in range(1500)]
    assert 0.93 <= covered(sweeps) <= 0.97
    # Nothing makes a difference here, so the paired interval holds the truth where there is no verdict.
    assert 0.03 <= false_verdicts(sweeps) <= 0.07


def test_of_many_equal_cells_the_best_is_mostly_kept_and_no_verdict_is_left_after_holm() -> None:
    rng = np.random.default_rng(0)
    sweeps = [drawn_sweep(3, {"adamw": 1, "other": 1}, 6, rng) for _ in range(250)]
    assert 0.86 <= kept_best(sweeps) <= 0.96
    assert any_false(sweeps) <= 0.07


def test_choosing_on_the_replicates_shown_flatters_a_mean_as_the_page_says() -> None:
    rng = np.random.default_rng(0)
    sweeps = [drawn_sweep(5, {"adamw": 8, "other": 8}, 1, rng) for _ in range(1500)]
    # The least of eight standard normal numbers is -1.4236 on average; half the variance is the settings' own.
    assert flattered(sweeps) == pytest.approx(1.4236 * math.sqrt(0.5 / 5), rel=0.05)
    assert covered(sweeps) < 0.93
    assert false_verdicts(sweeps) < 0.05


def test_the_figures_of_the_page_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["confidence.py", "--sweeps", "16", "--json"])
    main()
    table, last = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    figures = json.loads(last)["figures"]
    assert list(figures) == [f"{n}x{settings}" for n in (3, 5, 10) for settings in (1, 2, 4, 8)]
    assert all(0 <= value <= 1 for each in figures.values() for name, value in each.items() if name != "flattered")
    assert all(name in table for name in figures)


@pytest.mark.parametrize("text", ["2", "-0.1", "half", "nan"])
def test_a_share_lies_between_none_and_all(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["confidence.py", "--of-seed", text])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"a number from 0 to 1 is needed, got '{text}'" in capsys.readouterr().err
