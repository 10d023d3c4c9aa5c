"""What stopping is expected to save: where it can be worked out by hand, and what `plan` says of it."""

from pathlib import Path
from typing import Any

import pytest
from small_plan import SPACE, small_plan

from orchestrator.cli.planning import _expectation
from orchestrator.sweep.expected import expected_savings

RATES = {"values": [0.001, 0.003, 0.01, 0.03]}
RULES = SPACE["early_terminate"]


def share(folder: Path, *, interval: int = 10, lanes: tuple[str, ...] = ("seed", "lr"), **rules: Any) -> float:
    """Of a control and two cells with four learning rates and two seeds, 80 steps each."""
    changes = {
        "parameters": {**SPACE["parameters"], "lr": RATES},
        "lanes": list(lanes),
        "run": {**SPACE["run"], "report_interval": interval},
        "early_terminate": {**RULES, **rules},
    }
    return expected_savings(small_plan(folder, changes))


@pytest.mark.parametrize(
    ("options", "settings_spared"),
    [
        ({"eta": 2}, 2 * 70 + 60),
        ({"eta": 4}, 3 * 70),
        ({"eta": 2, "min_iter": 40}, 2 * 40),
        ({"eta": 2, "interval": 16}, 2 * 64 + 48),
        ({"eta": 2, "interval": 80}, 0),
        ({"eta": 2, "audit": 1.0}, 0),
        ({"type": "none"}, 0),
    ],
)
def test_halving_inside_a_pack_is_exact(options: dict[str, Any], settings_spared: int, tmp_path: Path) -> None:
    """Each cell is one pack, so packs have nobody to compete with; the control is spared nothing."""
    assert share(tmp_path, **options) == pytest.approx(2 * settings_spared / (3 * 4 * 80))


def test_packs_of_a_cell_are_stopped_where_one_before_them_was_better(tmp_path: Path) -> None:
    """With eta 4 and one rung a pack goes on where it is the best so far; with two values the cutoff lies between."""
    expected = (0 + 1 / 2 + 2 / 3 + 3 / 4) * 40
    assert share(tmp_path, lanes=("seed",), eta=4, min_iter=40) == pytest.approx(2 * expected / (3 * 4 * 80), rel=0.05)


def test_competing_in_the_whole_sweep_spares_more(tmp_path: Path) -> None:
    assert share(tmp_path, lanes=("seed",), scope="sweep") > share(tmp_path, lanes=("seed",), scope="cell")


def test_the_same_plan_gives_the_same_share(tmp_path: Path) -> None:
    assert share(tmp_path, lanes=("seed",)) == share(tmp_path, lanes=("seed",))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"type": "none"}, "stopping: only trials that diverge, collapse or stall end early"),
        ({**RULES, "min_iter": 40}, "stopping: asha should save about 17% of 960 steps, if packs rank at random among"),
    ],
)
def test_plan_says_it_with_its_assumption(rules: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = {**SPACE["run"], "report_interval": 10}
    assert _expectation(small_plan(tmp_path, {"early_terminate": rules, "run": run})).startswith(said)
