"""Decisions on recorded histories, against an exact reference that looks the whole history up again each time."""

import ast
import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.stopping import (
    Asha,
    Decision,
    LanePolicy,
    LaneReport,
    LaneWatch,
    RankCheck,
    RankWarning,
    group_of,
    halve,
    is_audited,
    rung_cutoff,
    rung_steps,
)

NAN, INF = math.nan, math.inf
COLLAPSED = (NAN, INF, -INF, None)

#: (pack, step, value): one report.
Report = tuple[str, int, float | None]
#: min_step, eta, max_step.
ASHA = (10, 2, 90)

etas = st.sampled_from([1.5, 2, 3, 4, 8])
# Quarters: ties are frequent, and no two values lie so close that rounding could decide.
losses = st.integers(-40, 40).map(lambda quarters: quarters / 4)
values = losses | st.sampled_from(COLLAPSED)
packs = st.sampled_from("abcdefg")


@st.composite
def histories(draw: st.DrawFn) -> list[Report]:
    """Reports of several packs in any arrival order; each pack's steps rise, and may jump over rungs."""
    steps: dict[str, int] = {}
    history = []
    for pack, advance, value in draw(st.lists(st.tuples(packs, st.integers(1, 45), values), max_size=40)):
        steps[pack] = steps.get(pack, 0) + advance
        history.append((pack, steps[pack], value))
    return history


def is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def play(asha: Asha, history: list[Report], group: str = "g") -> list[tuple[Report, Decision | None]]:
    """Report a history as a sweep would: a pack that was stopped reports no more."""
    heard = (report for report in history if report[0] not in asha.stopped)
    return [(report, asha.decide(group, *report)) for report in heard]


def stops(asha: Asha, history: list[Report]) -> dict[str, int]:
    return {pack: decision.step for (pack, _, _), decision in play(asha, history) if decision}


def members(heard: list[Report], rung: int) -> dict[str, float | None]:
    """Who stands on a rung, with the value of its first report at or beyond it."""
    first: dict[str, float | None] = {}
    for pack, step, value in heard:
        if step >= rung:
            first.setdefault(pack, value)
    return first


def exact_verdict(heard: list[Report], report: Report, eta: float, max_step: int) -> tuple[bool, Fraction | None]:
    """Whether to stop, and the cutoff, in exact arithmetic."""
    pack, step, _ = report
    reached = [r for r in rung_steps(10, eta, max_step) if r <= step]
    if not reached or step >= max_step:
        return False, None
    on_rung = members([*heard, report], reached[-1])
    value = on_rung[pack]
    finite = sorted(Fraction(v) for v in on_rung.values() if is_finite(v))
    if len(finite) < 2:
        return bool(finite) and not is_finite(value), None
    position = Fraction(len(finite) - 1) / Fraction(eta)
    below = math.floor(position)
    cutoff = finite[below] + (finite[below + 1] - finite[below]) * (position - below)
    return not is_finite(value) or Fraction(value) > cutoff, cutoff


class TestRungs:
    @pytest.mark.parametrize(
        ("min_step", "eta", "max_step", "rungs"),
        [
            (100, 2, 1000, (100, 200, 400, 800)),
            (100, 2, 800, (100, 200, 400)),
            (100, 3, 2000, (100, 300, 900)),
            (10, 1.5, 60, (10, 15, 22, 34, 51)),
            (1, 1.1, 5, (1, 2, 3, 4)),
            (500, 2, 500, ()),
        ],
    )
    def test_are_powers_of_eta_below_the_last_step(
        self, min_step: int, eta: float, max_step: int, rungs: tuple[int, ...]
    ) -> None:
        assert rung_steps(min_step, eta, max_step) == rungs

    @given(st.integers(1, 50), st.floats(1.05, 10), st.integers(1, 2000))
    def test_rise_strictly(self, min_step: int, eta: float, max_step: int) -> None:
        rungs = rung_steps(min_step, eta, max_step)
        assert list(rungs) == sorted(set(rungs))
        assert all(min_step <= rung < max_step for rung in rungs)

    @pytest.mark.parametrize(("min_step", "eta"), [(0, 2), (-1, 2), (1, 1), (1, 0.5), (1, NAN), (1, INF)])
    def test_impossible_ladders_are_refused(self, min_step: int, eta: float) -> None:
        with pytest.raises(ValueError, match=r"min_step must|eta must"):
            Asha(min_step, eta, 100)


class TestCutoff:
    @given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), etas)
    def test_is_numpys_percentile(self, finite: list[float], eta: float) -> None:
        expected = np.percentile(finite, 100 / eta)
        assert rung_cutoff(finite, eta) == pytest.approx(expected, rel=1e-12, abs=1e-12 * max(map(abs, finite)))

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2), etas)
    def test_is_never_under_the_best_value_nor_above_the_worst(self, finite: list[float], eta: float) -> None:
        assert min(finite) <= rung_cutoff(finite, eta) <= max(finite)

    @given(st.lists(values), etas)
    def test_knows_finite_values_only(self, mixed: list[float | None], eta: float) -> None:
        assert rung_cutoff(mixed, eta) == rung_cutoff(list(filter(is_finite, mixed)), eta)

    @pytest.mark.parametrize(
        ("finite", "eta", "expected"),
        [
            pytest.param([-1.7e308, 1.7e308], 2, 0.0, id="the width of the range overflows"),
            pytest.param([0.3] * 4, 7, 0.3, id="0.3 * 4/7 + 0.3 * 3/7 rounds to less than 0.3"),
        ],
    )
    def test_rounding_and_overflow_leave_it_between_its_neighbours(
        self, finite: list[float], eta: float, expected: float
    ) -> None:
        assert rung_cutoff(finite, eta) == expected

    @pytest.mark.parametrize("few", [[], [1.0], [1.0, NAN, INF, None]])
    def test_needs_two_values(self, few: list[float | None]) -> None:
        assert rung_cutoff(few, 2) is None


class TestAsha:
    @pytest.mark.parametrize(
        ("history", "stopped"),
        [
            pytest.param([("a", 10, 3.0)], {}, id="one alone goes on"),
            pytest.param([("a", 10, 3.0), ("b", 10, 4.0)], {"b": 10}, id="the worse of two"),
            pytest.param([("b", 10, 4.0), ("a", 10, 3.0)], {}, id="the worse of two came first"),
            pytest.param([("a", 10, 3.0), ("b", 10, 3.0), ("c", 10, 3.0)], {}, id="ties"),
            pytest.param([("a", 10, 3.0), ("b", 19, 9.0), ("b", 20, 1.0)], {"b": 19}, id="first report past a rung"),
            pytest.param([("a", 10, 3.0), ("b", 9, 9.0)], {}, id="no rung reached"),
            pytest.param([("a", 10, 3.0), ("a", 15, 9.0), ("b", 10, 4.0)], {"b": 10}, id="reports between rungs"),
            pytest.param([("a", 40, 2.0), ("b", 10, 3.0)], {"b": 10}, id="skipped rungs are filled"),
            pytest.param([("a", 10, 2.0), ("b", 40, 9.0)], {}, id="judged on the highest rung only"),
            pytest.param([("a", 10, 2.0), ("b", 10, NAN)], {"b": 10}, id="nan beside a finite one"),
            pytest.param([("a", 10, 2.0), ("b", 10, -INF)], {"b": 10}, id="minus infinity is not a good loss"),
            pytest.param([("a", 10, 2.0), ("b", 10, None)], {"b": 10}, id="nothing measured"),
            pytest.param([("a", 10, NAN), ("b", 10, INF), ("c", 10, None)], {}, id="nobody is finite"),
            pytest.param([("a", 10, NAN), ("b", 10, 5.0)], {}, id="a collapsed one sets no bar"),
            pytest.param(
                [("b", 10, 4.0), ("a", 10, 3.0), ("b", 15, 2.0)], {"b": 15}, id="who came first is judged again"
            ),
            pytest.param(
                [("b", 10, 4.0), ("a", 10, 3.0), ("b", 20, 2.0), ("a", 15, 5.0)], {}, id="not on a rung left behind"
            ),
            pytest.param(
                [("a", 10, INF), ("b", 10, INF), ("c", 10, INF), ("d", 10, 2.0), ("e", 10, 3.0)],
                {"e": 10},
                id="several inf do not end pruning",
            ),
            pytest.param(
                [("a", 10, 3.0), ("b", 10, 4.0), ("c", 10, 3.6)],
                {"b": 10},
                id="the stopped stay on the rung: without b, c would be above the cutoff",
            ),
            pytest.param([("a", 89, 1.0), ("b", 90, 9.0), ("c", 95, NAN)], {}, id="completed is not stopped"),
        ],
    )
    def test_stops(self, history: list[Report], stopped: dict[str, int]) -> None:
        assert stops(Asha(*ASHA), history) == stopped

    def test_says_what_it_decided_on(self) -> None:
        asha = Asha(*ASHA)
        asha.decide("g", "a", 10, 3.0)
        assert asha.decide("g", "b", 12, 4.0) == Decision(
            reason="asha",
            step=12,
            value=4.0,
            reference=3.5,
            threshold=None,
            message="4 at step 12 is above 3.5, the cutoff of the best 1 in 2 of 2 values on the rung of step 10",
        )
        assert asha.decide("g", "c", 10, NAN) == Decision(
            reason="asha",
            step=10,
            value=None,
            reference=3.5,
            threshold=None,
            message="no finite value at step 10; 2 of 3 trials on the rung of step 10 have one",
        )

    @given(histories(), etas, st.integers(20, 200))
    def test_agrees_with_the_exact_reference(self, history: list[Report], eta: float, max_step: int) -> None:
        heard: list[Report] = []
        for report, decision in play(Asha(10, eta, max_step), history):
            stopped, cutoff = exact_verdict(heard, report, eta, max_step)
            assert (decision is not None) == stopped
            if decision and cutoff is not None:
                assert decision.reference == pytest.approx(float(cutoff))
            heard.append(report)

    @given(histories(), etas)
    def test_never_stops_the_best_so_far(self, history: list[Report], eta: float) -> None:
        heard: list[Report] = []
        asha = Asha(10, eta, 1000)
        for report, decision in play(asha, history):
            heard.append(report)
            pack, step, value = report
            reached = max((rung for rung in asha.rungs if rung <= step), default=0)
            best = min(filter(is_finite, members(heard, reached).values()), default=None)
            if is_finite(value) and value == best and members(heard, reached)[pack] == value:
                assert decision is None

    @given(histories(), etas)
    def test_collapsed_packs_change_no_other_decision(self, history: list[Report], eta: float) -> None:
        collapsed = {pack for pack, _, value in history if not is_finite(value)}
        with_them = dict(play(Asha(10, eta, 1000), [(p, s, NAN if p in collapsed else v) for p, s, v in history]))
        without = dict(play(Asha(10, eta, 1000), [report for report in history if report[0] not in collapsed]))
        assert {report: with_them[report] for report in without} == without

    @given(histories(), histories(), st.randoms(use_true_random=False))
    def test_groups_do_not_meet(self, one: list[Report], two: list[Report], shuffler: st.random_module) -> None:
        apart = play(Asha(*ASHA), one), play(Asha(*ASHA), two)
        together: tuple[list, list] = ([], [])
        asha, pending = Asha(*ASHA), (list(one), list(two))
        while pending[0] or pending[1]:
            side = shuffler.choice([side for side in (0, 1) if pending[side]])
            pack, step, value = report = pending[side].pop(0)
            if f"{pack}{side}" not in asha.stopped:
                together[side].append((report, asha.decide(str(side), f"{pack}{side}", step, value)))
        assert together == apart

    @given(histories(), etas, st.integers(0, 40))
    def test_goes_on_from_saved_state(self, history: list[Report], eta: float, cut: int) -> None:
        whole = Asha(10, eta, 200, exempt={"a"}, audit=0.5)
        before = play(whole, history[:cut])
        whole.lose("b")
        restored = Asha.from_state(json.loads(json.dumps(whole.state(), allow_nan=False)))
        assert restored.state() == whole.state()
        assert restored.stopped == {pack: decision for (pack, _, _), decision in before if decision}
        assert play(restored, history[cut:]) == play(whole, history[cut:])

    @given(histories(), etas)
    def test_hearing_every_report_twice_changes_nothing(self, history: list[Report], eta: float) -> None:
        once, twice = Asha(10, eta, 1000), Asha(10, eta, 1000)
        for report in history:
            decision = once.decide("g", *report)
            assert twice.decide("g", *report) == decision
            assert twice.decide("g", *report) == (decision if report[0] in twice.stopped else None)
        assert twice.state() == once.state()

    def test_a_retry_replaces_its_value(self) -> None:
        asha = Asha(*ASHA)
        asha.decide("g", "a", 25, 5.0)
        for step, value in ((10, 3.0), (20, 9.0), (20, 2.0), (25, 1.0)):
            assert asha.decide("g", "a", step, value) is None
        assert asha.state()["entries"] == [["g", 10, "a", 10, 3.0], ["g", 20, "a", 20, 2.0]]

    def test_a_retry_is_not_judged_again_though_others_came_in_between(self) -> None:
        asha = Asha(*ASHA)
        asha.decide("g", "a", 10, 4.0)
        asha.decide("g", "b", 10, 1.0)
        assert asha.decide("g", "a", 10, 4.0) is None
        assert asha.decide("g", "a", 20, 4.0) is None, "alone on its next rung"

    def test_a_stop_that_was_not_carried_out_is_carried_out_where_it_was_decided(self) -> None:
        asha = Asha(*ASHA)
        asha.decide("g", "a", 20, 1.0)
        decision = asha.decide("g", "b", 20, 2.0)
        assert decision is not None
        assert [asha.decide("g", "b", step, 0.5) for step in (10, 20, 40)] == [None, decision, decision]

    def test_what_is_measured_after_a_stop_enters_no_rung(self) -> None:
        asha = Asha(*ASHA)
        asha.decide("g", "a", 20, 1.0)
        asha.decide("g", "b", 20, 2.0)
        asha.decide("g", "b", 40, 0.5)
        assert asha.decide("g", "a", 40, 0.9) is None
        assert [(rung, trial) for _, rung, trial, _, _ in asha.state()["entries"] if rung == 40] == [(40, "a")]

    def test_a_lost_trial_sets_no_bar_with_what_it_measured_before(self) -> None:
        asha = Asha(*ASHA)
        asha.decide("g", "a", 10, 1.0)
        asha.decide("g", "b", 10, 0.5)
        asha.lose("b")
        asha.lose("a")
        assert asha.decide("g", "c", 10, 3.0) is None, "the only one that is not lost"
        assert asha.decide("g", "d", 10, 4.0) is not None

    def test_every_stop_is_audited_or_none_by_the_share(self) -> None:
        for audit in (0.0, 1.0):
            asha = Asha(*ASHA, audit=audit)
            decisions = [asha.decide("g", trial, 10, value) for trial, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
            assert [decision and decision.audited for decision in decisions] == [None, audit == 1, audit == 1]

    @pytest.mark.parametrize("value", [99.0, *COLLAPSED])
    def test_the_exempt_are_recorded_but_go_on(self, value: float | None) -> None:
        asha = Asha(*ASHA, exempt={"control"})
        asha.decide("g", "a", 10, 1.0)
        assert asha.decide("g", "control", 10, value) is None
        assert "control" in {trial for _, _, trial, _, _ in asha.state()["entries"]}


class TestHalve:
    @pytest.mark.parametrize(
        ("settings", "eta", "kept", "dropped"),
        [
            ({}, 2, (), ()),
            ({"a": NAN}, 2, ("a",), ()),
            ({"a": 2.0, "b": 1.0}, 2, ("b",), ("a",)),
            ({"a": 2.0, "b": 1.0, "c": 3.0}, 2, ("b", "a"), ("c",)),
            ({"a": 2.0, "b": 1.0, "c": 3.0}, 3, ("b",), ("a", "c")),
            ({"a": 2.0, "b": 1.0, "c": 3.0}, 1.5, ("b", "a"), ("c",)),
            ({"c": 1.0, "a": 1.0, "b": 1.0}, 2, ("a", "b"), ("c",)),
            ({"a": NAN, "b": INF, "c": None, "d": -INF, "e": 9.0}, 2, ("e", "a", "b"), ("c", "d")),
        ],
    )
    def test_keeps(
        self, settings: dict[str, float | None], eta: float, kept: tuple[str, ...], dropped: tuple[str, ...]
    ) -> None:
        assert halve(settings, eta) == (kept, dropped)

    @given(st.dictionaries(st.text(max_size=3), values), etas, st.randoms(use_true_random=False))
    def test_order_of_the_settings_does_not_matter(
        self, settings: dict[str, float | None], eta: float, shuffler: st.random_module
    ) -> None:
        kept, dropped = halve(settings, eta)
        assert sorted(kept + dropped) == sorted(settings)
        assert len(kept) == math.ceil(len(settings) / eta)
        assert all(settings[k] <= settings[d] for k in kept for d in dropped if is_finite(settings[d]))
        assert halve(dict(shuffler.sample(list(settings.items()), len(settings))), eta) == (kept, dropped)

    @pytest.mark.parametrize("eta", [1, 0, NAN, INF])
    def test_eta_must_exceed_one(self, eta: float) -> None:
        with pytest.raises(ValueError, match="eta must be"):
            halve({"a": 1.0}, eta)


def test_the_audit_takes_its_share_of_all_names_and_the_same_again_when_it_grows() -> None:
    names = [f"p{i:03d}-{i:08x}" for i in range(2000)]
    taken = {share: {name for name in names if is_audited(name, share)} for share in (0.0, 0.1, 0.5, 1.0)}
    assert (len(taken[0.0]), len(taken[1.0])) == (0, 2000)
    assert 150 < len(taken[0.1]) < 250
    assert taken[0.1] < taken[0.5]


@pytest.mark.parametrize(("scope", "groups"), [("cell", ["E4M3", "E5M2"]), ("sweep", ["sweep", "sweep"])])
def test_scope_decides_who_competes(scope: str, groups: list[str]) -> None:
    assert [group_of(scope, cell) for cell in ("E4M3", "E5M2")] == groups


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match="one of cell, sweep, got 'rung'"):
        group_of("rung", "E4M3")


def check(step: int, *ranks: float) -> RankCheck:
    """A check that warns of matrices left at these ranks where the control has 10."""
    return RankCheck(
        step, tuple(RankWarning(f"m{i}", rank, 10.0, 0.3, f"m{i} at {rank}") for i, rank in enumerate(ranks))
    )


def report(
    step: int, loss: float = 3.0, val: float | None = 3.0, stall: float | None = 0.5, *checks: RankCheck
) -> LaneReport:
    return LaneReport(step, loss, val, stall, checks)


WARNED, HEALTHY = check(100, 5.0), check(100)


class TestLaneWatch:
    @pytest.mark.parametrize(
        ("reports", "ended"),
        [
            pytest.param([report(1), report(2), report(3)], None, id="healthy"),
            pytest.param([report(1, loss=NAN)], ("diverged", 1), id="loss nan"),
            pytest.param([report(1), report(2, loss=INF)], ("diverged", 2), id="loss inf"),
            pytest.param([report(1, val=-INF)], ("diverged", 1), id="validation inf"),
            pytest.param([report(1, val=None), report(2, val=None)], None, id="no validation due"),
            pytest.param([report(1, 3.0, 3.0, 0.5, WARNED), report(2)], None, id="one warning"),
            pytest.param([report(i, 3.0, 3.0, 0.5, WARNED) for i in (1, 2)], ("rank_collapse", 2), id="two in a row"),
            pytest.param([report(1, 3.0, 3.0, 0.5, WARNED, WARNED)], ("rank_collapse", 1), id="two in one report"),
            pytest.param(
                [report(1, 3.0, 3.0, 0.5, WARNED), report(2), report(3, 3.0, 3.0, 0.5, WARNED)],
                ("rank_collapse", 3),
                id="a report without a check does not reset",
            ),
            pytest.param(
                [report(i, 3.0, 3.0, 0.5, WARNED, HEALTHY) for i in (1, 2, 3)], None, id="a healthy check resets"
            ),
            pytest.param([report(i, stall=1.0) for i in (1, 2)], None, id="two stalled reports"),
            pytest.param([report(i, stall=0.9999) for i in (1, 2, 3)], ("stalled", 3), id="three stalled reports"),
            pytest.param([report(i, stall=0.9998) for i in (1, 2, 3)], None, id="nearly stalled"),
            pytest.param([report(i, stall=(0.5 if i == 3 else 1.0)) for i in range(1, 6)], None, id="a move resets"),
            pytest.param([report(i, stall=None) for i in (1, 2, 3)], None, id="formats without codes"),
            pytest.param([report(i, stall=NAN) for i in (1, 2, 3)], None, id="stall ratio undefined"),
        ],
    )
    def test_ends_lanes(self, reports: list[LaneReport], ended: tuple[str, int] | None) -> None:
        watch = LaneWatch(LanePolicy())
        decisions = [watch.observe(each) for each in reports]
        assert decisions[:-1] == [None] * (len(reports) - 1)
        assert (decisions[-1] and (decisions[-1].reason, decisions[-1].step)) == ended

    @pytest.mark.parametrize(
        ("last", "reason"),
        [
            (report(2, NAN, 3.0, 1.0, WARNED), "diverged"),
            (report(2, 3.0, 3.0, 1.0, WARNED), "rank_collapse"),
            (report(2, 3.0, 3.0, 1.0), "stalled"),
        ],
    )
    def test_diverged_comes_before_rank_collapse_before_stalled(self, last: LaneReport, reason: str) -> None:
        watch = LaneWatch(LanePolicy(rank_collapse_patience=2, stall_patience=2))
        assert watch.observe(report(1, 3.0, 3.0, 1.0, WARNED)) is None
        decision = watch.observe(last)
        assert decision is not None
        assert decision.reason == reason

    @pytest.mark.parametrize(
        ("ending", "decision"),
        [
            (report(7, loss=NAN), Decision("diverged", 7, None, None, None, "training loss is nan at step 7")),
            (report(7, val=INF), Decision("diverged", 7, None, None, None, "validation loss is inf at step 7")),
            (
                report(7, 3.0, 3.0, 0.5, check(6, 5.0, 2.0, 6.5)),
                Decision(
                    "rank_collapse",
                    7,
                    2.0,
                    10.0,
                    0.3,
                    "rank warnings in 1 checks in a row, the last at step 6: m1 at 2.0",
                ),
            ),
            (
                report(7, stall=1.0),
                Decision(
                    "stalled", 7, 1.0, 0.9999, None, "stall ratio 1 is at the limit 0.9999 for 1 reports in a row"
                ),
            ),
        ],
    )
    def test_says_what_it_decided_on(self, ending: LaneReport, decision: Decision) -> None:
        assert LaneWatch(LanePolicy(rank_collapse_patience=1, stall_patience=1)).observe(ending) == decision

    @given(
        st.lists(
            st.builds(
                LaneReport,
                step=st.integers(1, 9),
                loss=losses | st.just(NAN),
                val_loss=losses | st.none(),
                stall_ratio=st.sampled_from([None, 0.5, 1.0]),
                rank_checks=st.lists(st.sampled_from([WARNED, HEALTHY]), max_size=2).map(tuple),
            )
        ),
        st.integers(0, 10),
    )
    def test_goes_on_from_saved_state(self, reports: list[LaneReport], cut: int) -> None:
        policy = LanePolicy(rank_collapse_patience=3, stall_patience=3)
        whole = LaneWatch(policy)
        for each in reports[:cut]:
            whole.observe(each)
        restored = LaneWatch.from_state(policy, json.loads(json.dumps(whole.state())))
        assert [restored.observe(each) for each in reports[cut:]] == [whole.observe(each) for each in reports[cut:]]

    @pytest.mark.parametrize(
        "wrong", [{"rank_collapse_patience": 0}, {"stall_patience": 0}, {"stall_limit": 0.0}, {"stall_limit": NAN}]
    )
    def test_impossible_policies_are_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LanePolicy(**wrong)


def test_imports_nothing_but_the_standard_library() -> None:
    loaded = "{name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names"
    command = [sys.executable, "-S", "-c", f"import sys, orchestrator.sweep.stopping; print({loaded})"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert ast.literal_eval(ran.stdout) == {"__main__", "orchestrator"}
