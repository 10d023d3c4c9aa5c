"""Optimizers against AdamW: the differences, the verdicts, and the sentences that say them."""

import json
from typing import Any

import pytest
from synthetic_sweep import Sweep

from orchestrator.results.cells import Cell, Place, Setting, Trial, build_cell
from orchestrator.results.consolidate import consolidate
from orchestrator.results.matrix import Matrix, matrix
from orchestrator.results.paired import Benefit, benefits, sentences

End = tuple[str, int]
COMPLETED: End = ("completed", 400)


def cell(place: Place, results: list[float | None], ends: list[End] | End = COMPLETED, first_seed: int = 1) -> Cell:
    each = ends if isinstance(ends, list) else [ends] * len(results)
    trials = [
        Trial(end, step, value, f"seed={seed}")
        for seed, (value, (end, step)) in enumerate(zip(results, each, strict=True), first_seed)
    ]
    setting = Setting({}, trials)
    return build_cell(place, [setting], setting if setting.values else None, control=False)


def whole(cells: list[Cell], metric: str = "val_loss", goal: str = "minimize", **fields: Any) -> Matrix:
    described = {"row_parameter": "format", "column_parameters": ("optimizer",), "nuisance_parameters": (), "fixed": {}}
    return Matrix(
        name="study",
        metric=metric,
        goal=goal,
        objective="val_loss",
        rows=list(dict.fromkeys(cell.row for cell in cells)),
        columns=list(dict.fromkeys(cell.column for cell in cells)),
        cells={(cell.row, cell.column): cell for cell in cells},
        **{**described, **fields},
    )


def pair(row: str, results: list[float | None], differences: list[float | None], **options: Any) -> list[Cell]:
    """AdamW's cell with these results, and the other optimizer's with these differences from it."""
    other = [None if d is None or r is None else r + d for r, d in zip(results, differences, strict=True)]
    return [cell((row, ("adamw",)), results), cell((row, ("manifold_adamw",)), other, **options)]


SEEDS = [2.1, 2.3, 2.2]
HELPS = pair("E5M2", SEEDS, [-0.010, -0.012, -0.014])
HURTS = pair("E7M0", SEEDS, [0.10, 0.11, 0.12])
NOTHING = pair("E3M4", SEEDS, [-0.01, 0.01, 0.005])


def found(cells: list[Cell], **options: Any) -> list[Benefit]:
    return benefits(whole(cells, **options))


def said(cells: list[Cell], **options: Any) -> list[str]:
    built = whole(cells, **options)
    return sentences(built, benefits(built))


# --- numbers


def test_replicates_are_paired_by_name_and_those_without_a_partner_left_out() -> None:
    base = cell(("E5M2", ("adamw",)), [1.0, 2.0, 3.0, 9.0])
    other = cell(("E5M2", ("grid",)), [2.1, 3.2, 9.15], first_seed=2)
    (each,) = found([base, other])
    assert (each.optimizer, each.where, each.n, each.why) == ("grid", {"format": "E5M2"}, 3, None)
    assert each.difference == pytest.approx((0.1 + 0.2 + 0.15) / 3)
    # Standard deviation 0.05, t quantile 4.3027.
    assert each.interval == pytest.approx(4.3027 * 0.05 / 3**0.5, rel=1e-4)
    assert each.verdict == "hurts"


def test_pairs_tell_apart_what_separate_intervals_do_not() -> None:
    adamw, other = HELPS
    assert adamw.mean is not None
    assert other.mean is not None
    assert adamw.interval is not None
    assert abs(adamw.mean - other.mean) < adamw.interval
    assert found(HELPS)[0].verdict == "helps"


@pytest.mark.parametrize(
    ("goal", "verdicts"),
    [("minimize", ["helps", "hurts", "indistinct"]), ("maximize", ["hurts", "helps", "indistinct"])],
)
def test_what_helps_depends_on_the_goal(goal: str, verdicts: list[str]) -> None:
    assert [each.verdict for each in found([*HELPS, *HURTS, *NOTHING], goal=goal)] == verdicts


@pytest.mark.parametrize(
    ("other", "why", "difference"),
    [
        (pair("E5M2", SEEDS, [-0.5, -0.5, None], ends=[COMPLETED, COMPLETED, ("diverged", 90)]), "undefined", None),
        (pair("E5M2", SEEDS, [0.5, 0.5, 0.5], ends=("asha", 120)), "steps", None),
        (pair("E5M2", SEEDS, [0.5, 0.5, 0.5], ends=[COMPLETED, COMPLETED, ("stalled", 90)]), "steps", None),
        (pair("E5M2", SEEDS, [0.5, 0.5, 0.5], ends=[COMPLETED, COMPLETED, ("failed", 90)]), "few", 0.5),
        (pair("E5M2", SEEDS[:2], [0.5, 0.5]), "few", 0.5),
        (pair("E5M2", SEEDS[:1], [0.5]), "few", 0.5),
        (pair("E5M2", SEEDS, [None] * 3, ends=("planned", 0)), "few", None),
        (pair("E5M2", SEEDS, [None] * 3, ends=("diverged", 9)), "undefined", None),
    ],
    ids=["diverged", "stopped", "one stopped", "one failed", "two", "one", "planned", "none left"],
)
def test_what_is_no_estimate_is_no_number_and_gets_no_verdict(
    other: list[Cell], why: str, difference: float | None
) -> None:
    (each,) = found(other)
    assert (each.verdict, each.why, each.interval, each.p, each.holm) == ("unsure", why, None, None, None)
    assert each.difference == (None if difference is None else pytest.approx(difference))


def test_what_was_stopped_at_the_same_step_on_both_sides_is_compared_there() -> None:
    adamw = cell(("E5M2", ("adamw",)), SEEDS, ("stalled", 120))
    grid = cell(("E5M2", ("grid",)), [2.2, 2.41, 2.3], ("rank_collapse", 120))
    assert found([adamw, grid])[0].verdict == "hurts"
    (sentence,) = said([adamw, grid])
    assert sentence == "grid hurts E5M2 by 0.103 ± 0.014 nats (at step 120), n = 3."


def test_a_cell_without_a_partner_or_excluded_is_left_out() -> None:
    excluded = Cell("E7M0", ("manifold_adamw",), excluded="no masters")
    alone = cell(("E0M7", ("manifold_adamw",)), SEEDS)
    assert found([*HELPS, HURTS[0], excluded, alone]) == found(HELPS)
    assert found([cell(("E5M2", ("master",)), SEEDS)], column_parameters=("storage",)) == []
    assert said([cell(("E5M2", ("master",)), SEEDS)], column_parameters=("storage",)) == []


def test_several_comparisons_are_adjusted_together() -> None:
    alone = found(HELPS)[0]
    together = found([*HELPS, *HURTS, *NOTHING])
    assert alone.holm == alone.p
    assert alone.p is not None
    assert (together[0].p, together[0].holm) == (alone.p, pytest.approx(2 * alone.p))


def test_through_the_store_and_json(sweep: Sweep) -> None:
    for optimizer, losses in (("adamw", [2.0, 2.5, 3.0]), ("grid", [2.5, 3.0, 3.5])):
        sweep.train(sweep.add_pack(lanes=3, optimizer=optimizer), losses)
    consolidate(sweep.store)
    built = matrix(sweep.store)
    (each,) = json.loads(json.dumps([each.to_dict() for each in benefits(built)], allow_nan=False))
    assert (each["difference"], each["interval"], each["n"], each["verdict"]) == (0.5, 0.0, 3, "hurts")
    assert sentences(built, benefits(built)) == ["grid hurts E4M3 by 0.5 ± 0 nats, n = 3."]


# --- in words


def test_the_sentence_says_who_is_helped_by_how_much_and_how_sure_that_is() -> None:
    first, several = said([*HELPS, *HURTS, *NOTHING])
    assert first == (
        "manifold_adamw helps E5M2 by 0.012 ± 0.005 nats, n = 3; hurts E7M0 by 0.110 ± 0.025 nats, n = 3; "
        "not distinguishable from adamw for E3M4."
    )
    assert several == (
        "Of 3 comparisons at 95 %, chance alone would tell 0.15 apart; at 95 % for all together (Holm) there hold: all."
    )


def test_what_holds_for_all_together_is_named() -> None:
    barely = pair("E4M3", SEEDS, [-0.010, -0.012, -0.019])
    assert said([*HURTS, *barely, *NOTHING])[1].endswith("(Holm) there hold: manifold_adamw E7M0.")
    assert said([*barely, *NOTHING])[1].endswith("(Holm) there hold: none.")
    assert said([*NOTHING, *pair("E4M3", SEEDS, [0.01, -0.02, 0.005])])[1].endswith("would tell 0.1 apart.")


def test_nothing_told_apart_is_said_as_a_sentence() -> None:
    assert said(NOTHING) == ["manifold_adamw is not distinguishable from adamw for E3M4."]


def test_with_two_seeds_there_are_no_numbers_to_misread() -> None:
    pairs = [each for row in ("E5M2", "E3M4") for each in pair(row, SEEDS[:2], [-0.5, -0.5])]
    pairs += pair("E4M3", SEEDS[:2], [0.5, 0.5], ends=("asha", 120)) + pair("E7M0", SEEDS[:2], [0.5, None])
    grid = [cell(("E5M2", ("grid",)), SEEDS[:2])]
    assert said([*pairs, *grid]) == [
        "Against adamw no verdict on manifold_adamw, grid: that takes 3 replicates that both have, and there are 2."
    ]


def test_what_is_not_judged_says_why() -> None:
    diverged = pair("E0M7", SEEDS, [0.0, 0.0, None], ends=[COMPLETED, COMPLETED, ("diverged", 90)])
    stopped = pair("E1M6", SEEDS, [0.5, 0.5, 0.5], ends=("asha", 120))
    mixed = pair("E2M5", SEEDS, [0.5, 0.5, 0.5], ends=[COMPLETED, COMPLETED, ("stalled", 90)])
    few = pair("E4M3", SEEDS[:2], [0.5, 0.5])
    assert said([*HELPS, *diverged, *stopped, *mixed, *few]) == [
        "manifold_adamw helps E5M2 by 0.012 ± 0.005 nats, n = 3; not judged for "
        "E0M7 (1 of 6 replicates without a number), E1M6 (at step 120, adamw at 400), "
        "E2M5 (at step 90, adamw at 400), E4M3 (n = 2)."
    ]


def test_unequal_numbers_of_replicates_are_said_with_each() -> None:
    more = pair("E7M0", [2.0, 2.1, 2.2, 2.3], [0.10, 0.11, 0.12, 0.13])
    assert said([*pair("E5M2", SEEDS, [0.010, 0.012, 0.014]), *more])[0] == (
        "manifold_adamw hurts E7M0 by 0.115 ± 0.021 nats (n = 4), E5M2 by 0.012 ± 0.005 nats (n = 3)."
    )


def test_a_metric_without_a_goal_of_its_own_is_lowered_or_raised() -> None:
    assert said([*HELPS, *HURTS], metric="stall_ratio")[0] == (
        "manifold_adamw lowers stall_ratio for E5M2 by 0.012 ± 0.005, n = 3; "
        "raises stall_ratio for E7M0 by 0.110 ± 0.025, n = 3."
    )


def test_the_optimizer_may_have_the_rows_or_be_all_there_is() -> None:
    turned = [cell((each.column[0], (each.row,)), list(each.values.values())) for each in [*HELPS, *HURTS]]
    axes = {"row_parameter": "optimizer", "column_parameters": ("format",)}
    assert said(turned, **axes)[0] == said([*HELPS, *HURTS])[0]
    alone = [cell((each.column[0], ()), list(each.values.values())) for each in HELPS]
    assert said(alone, row_parameter="optimizer", column_parameters=()) == [
        "manifold_adamw helps by 0.012 ± 0.005 nats, n = 3."
    ]


def test_what_else_the_sweep_varied_is_named_with_the_optimizer() -> None:
    cells = [cell((each.row, (*each.column, "nearest")), list(each.values.values())) for each in HELPS]
    assert said(cells, column_parameters=("optimizer", "storage")) == [
        "manifold_adamw (nearest) helps E5M2 by 0.012 ± 0.005 nats, n = 3."
    ]
