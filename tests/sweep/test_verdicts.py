"""From rows to verdicts: what ends a lane, what only warns, and what has to wait for the control."""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altgrad.training.config import ModelConfig, RankConfig, RunConfig
from altgrad.training.metrics import Rows
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import ChunkWriter, Store
from orchestrator.sweep.stopping import Decision, LanePolicy, LaneReport, RankCheck, RankWarning
from orchestrator.sweep.verdicts import Control, LaneJudge, Verdict, event_columns, lane_rows

NAN, INF = math.nan, math.inf
POLICY = LanePolicy(rank_collapse_patience=2, stall_limit=0.9, stall_patience=2)


def config(reference: Any = "control") -> RunConfig:
    ranks = RankConfig(interval=10, warmup_steps=10, alpha=1.0, reference=reference)
    return RunConfig(model=ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=32), ranks=ranks)


def judge(control: Control | None = None, reference: str = "control") -> LaneJudge:
    return LaneJudge(config(reference), POLICY, control)


def steps(losses: list[float], val_loss: float = 3.0, stall: float = NAN) -> dict[str, np.ndarray]:
    val_losses = [NAN] * (len(losses) - 1) + [val_loss]
    return {
        "loss": np.array(losses),
        "val_loss": np.array(val_losses),
        "stall_ratio": np.full(len(losses), stall),
    }


def layers(ranks: Mapping[int, Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Rows of rank checks, each after a step without one."""
    rows = [
        (step + offset, matrix, rank if not offset else NAN)
        for step, by_matrix in ranks.items()
        for offset in (-1, 0)
        for matrix, rank in by_matrix.items()
    ]
    return {
        "step": np.array([row[0] for row in rows], dtype=int),
        "matrix": np.array([row[1] for row in rows], dtype=object),
        "effective_rank": np.array([row[2] for row in rows], dtype=float),
    }


def reason(verdict: Verdict) -> str | None:
    return verdict.decision and verdict.decision.reason


@pytest.mark.parametrize(
    ("losses", "val_loss", "expected"),
    [
        ([3.0, 2.9], 3.0, None),
        ([3.0, NAN], 3.0, "diverged"),
        ([INF, 3.0], 3.0, "diverged"),
        ([3.0, 2.9], NAN, "diverged"),
        ([3.0, 2.9], -INF, "diverged"),
    ],
)
def test_one_loss_that_is_no_number_ends_a_lane(losses: list[float], val_loss: float, expected: str | None) -> None:
    verdict = judge().judge(20, steps(losses, val_loss), layers({}))
    assert reason(verdict) == expected


@pytest.mark.parametrize(
    ("losses", "val_loss", "message"),
    [
        ([3.0, 2.9, NAN, NAN], NAN, "training loss is nan at step 20; the last good step was 18"),
        ([3.0, INF, 2.9, 2.8], 2.9, "training loss is inf at step 20; the last good step was 17"),
        ([NAN, NAN, NAN, NAN], NAN, "training loss is nan at step 20; the last good step was 16"),
        ([3.0, 2.9, 2.8, 2.7], NAN, "validation loss is nan at step 20; the last good step was 20"),
    ],
    ids=str,
)
def test_a_lane_that_diverged_names_its_last_good_step(losses: list[float], val_loss: float, message: str) -> None:
    decision = judge().judge(20, steps(losses, val_loss), layers({})).decision
    assert decision is not None
    assert decision.message == message


def test_a_report_holds_the_last_losses_and_the_mean_stall_ratio() -> None:
    rows = steps([3.0, 2.5], val_loss=2.75)
    rows["stall_ratio"] = np.array([0.25, 0.75])
    report = judge().judge(20, rows, layers({})).report
    assert report == LaneReport(step=20, loss=2.5, val_loss=2.75, stall_ratio=0.5, last_good_step=20)


def test_a_format_without_codes_has_no_stall_ratio() -> None:
    assert judge().judge(20, steps([3.0]), layers({})).report.stall_ratio is None


def test_a_stalled_lane_ends_after_its_patience_and_is_not_said_to_diverge() -> None:
    one = judge()
    verdicts = [one.judge(step, steps([3.0], stall=0.95), layers({})) for step in (10, 20)]
    assert [reason(verdict) for verdict in verdicts] == [None, "stalled"]


def test_a_control_is_held_against_nothing() -> None:
    verdict = judge(None).judge(20, steps([3.0]), layers({10: {"wte": 10.0}, 20: {"wte": 0.1}}))
    assert verdict.report.rank_checks == ()


def test_against_its_own_start_a_run_needs_no_control() -> None:
    rows = layers({10: {"wte": 10.0}, 20: {"wte": 5.0}, 30: {"wte": 5.0}})
    verdict = judge(None, reference="initial").judge(30, steps([3.0]), rows)
    assert [bool(check.warnings) for check in verdict.report.rank_checks] == [False, True, True]
    assert reason(verdict) == "rank_collapse"


def test_a_lost_rank_warns_and_then_ends_the_lane_with_its_numbers() -> None:
    one = judge(lambda step: {"wte": 10.0})
    first = one.judge(10, steps([3.0]), layers({10: {"wte": 6.0}}))
    (warning,) = first.report.rank_checks[0].warnings
    assert (warning.matrix, warning.value, warning.reference, warning.threshold) == ("wte", 6.0, 10.0, 0.15)
    assert first.decision is None
    second = one.judge(20, steps([3.0]), layers({20: {"wte": 5.0}}))
    assert second.decision is not None
    assert (second.decision.reason, second.decision.step, second.decision.value) == ("rank_collapse", 20, 5.0)


def test_the_tied_head_is_watched_as_a_head() -> None:
    """``wte`` is the head too here: it may lose 15 % and no more; an ordinary matrix 30 %."""
    one = judge(lambda step: {"wte": 10.0, "h.0.mlp.c_fc": 10.0})
    verdict = one.judge(10, steps([3.0]), layers({10: {"wte": 8.0, "h.0.mlp.c_fc": 8.0}}))
    assert [warning.matrix for warning in verdict.report.rank_checks[0].warnings] == ["wte"]


class LateControl:
    """A control that has come as far as ``reached``."""

    def __init__(self) -> None:
        self.reached = 0
        self.lost: set[int] = set()

    def __call__(self, step: int) -> dict[str, float] | None:
        if step > self.reached:
            return None
        return {} if step in self.lost else {"wte": 10.0}


def test_nothing_is_decided_until_the_control_has_come_as_far() -> None:
    control = LateControl()
    one = judge(control)
    sick = [one.judge(step, steps([3.0]), layers({step: {"wte": 1.0}})) for step in (10, 20, 30)]
    assert all(verdict.report.rank_checks == () and verdict.decision is None for verdict in sick)
    control.reached = 20
    late = one.judge(40, steps([3.0]), layers({40: {"wte": 1.0}}))
    assert [check.step for check in late.report.rank_checks] == [10, 20]
    assert late.decision is not None
    assert (late.decision.reason, late.decision.step) == ("rank_collapse", 40), "it ends where it is decided"


def test_a_check_without_a_reference_neither_warns_nor_calls_off_a_warning() -> None:
    control = LateControl()
    control.reached, control.lost = 100, {20}
    one = judge(control)
    verdict = one.judge(30, steps([3.0]), layers({step: {"wte": 1.0} for step in (10, 20, 30)}))
    assert [check.step for check in verdict.report.rank_checks] == [10, 30]
    assert reason(verdict) == "rank_collapse"


reports = st.lists(
    st.tuples(
        st.sampled_from([4.0, 7.0, 10.0]),
        st.sampled_from([0.5, 0.95]),
        st.integers(0, 2).map(lambda behind: behind * 10),
    ),
    min_size=2,
    max_size=10,
)


@given(history=reports, data=st.data())
def test_a_judge_that_was_restored_goes_on_as_if_nothing_had_happened(
    history: list[tuple[float, float, int]], data: st.DataObject
) -> None:
    """The memory goes through JSON, as it does in a checkpoint."""
    control = LateControl()

    def play(one: LaneJudge, since: int, until: int) -> list[Verdict]:
        verdicts = []
        for i in range(since, until):
            rank, stall, behind = history[i]
            step = 10 * (i + 1)
            control.reached = step - behind
            verdicts.append(one.judge(step, steps([3.0], stall=stall), layers({step: {"wte": rank}})))
        return verdicts

    undisturbed = play(judge(control), 0, len(history))
    cut = data.draw(st.integers(0, len(history)))
    first, second = judge(control), judge(control)
    before = play(first, 0, cut)
    second.restore(json.loads(json.dumps(first.state())))
    assert before + play(second, cut, len(history)) == undisturbed


def test_rows_of_a_lane_are_its_own() -> None:
    rows = Rows(
        {"key": np.array(["a", "b", "a"], dtype=object), "loss": np.array([1.0, 2.0, 3.0])},
        {"key": np.array(["b", "a"], dtype=object), "matrix": np.array(["x", "y"], dtype=object)},
    )
    own_steps, own_layers = lane_rows(rows, "a")
    assert own_steps["loss"].tolist() == [1.0, 3.0]
    assert own_layers["matrix"].tolist() == ["y"]


def test_warnings_and_the_end_become_rows_that_fit_the_schema(tmp_path: Path) -> None:
    check = RankCheck(10, (RankWarning("wte", 6.0, 10.0, 0.15, "wte is low"),))
    end = Decision("rank_collapse", 20, 5.0, 10.0, 0.15, "wte is low again")
    verdict = Verdict(LaneReport(20, 3.0, 3.0, None, (check, RankCheck(20))), end)
    store = Store.open(tmp_path)
    time = datetime(2026, 1, 2, 3, 4, 5)
    path = ChunkWriter(store, "p", 1).append("events", event_columns("k", verdict, time))
    assert path is not None
    rows = store.read_table(path, SCHEMAS["events"]).to_pylist()
    told = [(row["key"], row["step"], row["kind"], row["matrix"], row["value"], row["message"]) for row in rows]
    assert told == [
        ("k", 10, "rank_warning", "wte", 6.0, "wte is low"),
        ("k", 20, "rank_collapse", None, 5.0, "wte is low again"),
    ]
    assert {row["time"] for row in rows} == {time}


def test_a_verdict_without_news_has_no_rows() -> None:
    verdict = Verdict(LaneReport(20, 3.0, 3.0, None, (RankCheck(20),)), None)
    assert all(column == [] for column in event_columns("k", verdict, datetime(2026, 1, 1)).values())
