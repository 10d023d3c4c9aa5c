"""What an audit found: in the tables, in the matrix (nothing), and as regret."""

import json
import math
from typing import Any

import pytest
import scipy.stats
from synthetic_sweep import Sweep

from orchestrator.results.consolidate import consolidate
from orchestrator.results.matrix import matrix, savings
from orchestrator.results.queries import query
from orchestrator.results.regret import Regret, Win, regret
from orchestrator.results.store import ChunkWriter


def add(
    sweep: Sweep,
    lr: float,
    finals: list[float | None],
    *,
    audited: tuple[str, int] | None = None,
    ended: tuple[str, int] = ("completed", 400),
    **scientific: Any,
) -> None:
    """A setting, its replicates with these final losses; at step 100 they all have 5."""
    pack = sweep.add_pack(lanes=len(finals), lr=lr, **scientific)
    writer = ChunkWriter(sweep.store, pack["pack"], 1)
    sweep.journal.append({"event": "pack_started", "pack": pack["pack"], "attempt": 1})
    for lane, value in zip(pack["lanes"], finals, strict=True):
        losses = [5.0, math.nan if value is None else value]
        rows = {"step": [100, ended[1]], "loss": losses, "val_loss": losses, "stall_ratio": [0.25, 0.75]}
        writer.append("steps", {"key": [lane["key"]] * 2, **rows})
        if audited:
            sweep.audit(pack, lane["key"], *audited)
        sweep.end(pack, lane["key"], *(ended if value is not None else ("diverged", ended[1])))


def found(sweep: Sweep) -> Regret:
    consolidate(sweep.store)
    return regret(sweep.store)


ASHA = ("asha", 100)


def test_an_audited_trial_shows_what_it_was_spared_beside_its_end(sweep: Sweep) -> None:
    add(sweep, 0.01, [2.0], audited=("stalled", 100))
    add(sweep, 0.001, [3.0])
    consolidate(sweep.store)
    trials = query(sweep.store, "SELECT reason, step, audited, audited_step FROM trials ORDER BY lr DESC").to_pylist()
    assert [tuple(trial.values()) for trial in trials] == [
        ("completed", 400, "stalled", 100),
        ("completed", 400, None, None),
    ]
    events = query(sweep.store, "SELECT key, step, value, reference, message FROM events WHERE kind = 'audited'")
    assert events.to_pylist() == [
        {"key": "k0000", "step": 100, "value": 4.0, "reference": 3.0, "message": "stalled: stalled!"}
    ]
    assert savings(sweep.store).saved == 0


def test_of_two_audits_of_a_trial_the_earlier_counts(sweep: Sweep) -> None:
    add(sweep, 0.01, [2.0], audited=ASHA)
    sweep.audit(sweep.plan["packs"][0], "k0000", "rank_collapse", 200)
    consolidate(sweep.store)
    (trial,) = query(sweep.store, "SELECT audited, audited_step FROM trials").to_pylist()
    assert trial == {"audited": "asha", "audited_step": 100}


@pytest.mark.parametrize("metric", ["val_loss", "loss", "best_val_loss", "stall_ratio"])
@pytest.mark.parametrize("final", [2.0, None], ids=["would have won", "diverged later"])
def test_the_matrix_is_that_of_a_sweep_without_an_audit(
    metric: str, final: float | None, sweep: Sweep, tmp_path_factory: pytest.TempPathFactory
) -> None:
    add(sweep, 0.01, [final, final], audited=ASHA)
    add(sweep, 0.001, [3.0, 3.5])
    plain = Sweep(type(sweep.store).open(tmp_path_factory.mktemp("plain")))
    for pack in sweep.plan["packs"]:
        plain.add_pack(lanes=2, lr=pack["nuisance"]["lr"])
    for pack, losses, (reason, last) in zip(
        plain.plan["packs"], ([5.0], [5.0, 3.0]), (ASHA, ("completed", 400)), strict=True
    ):
        writer = ChunkWriter(plain.store, pack["pack"], 1)
        for i, lane in enumerate(pack["lanes"]):
            values = [*losses[:-1], losses[-1] + (0.5 * i if len(losses) > 1 else 0)]
            steps = {"step": [100, last][: len(losses)], "loss": values, "val_loss": values}
            stalls = {"stall_ratio": [0.25, 0.75][: len(losses)]}
            writer.append("steps", {"key": [lane["key"]] * len(losses), **steps, **stalls})
            plain.end(pack, lane["key"], reason, last)
    for each in (sweep, plain):
        consolidate(each.store)
    assert matrix(sweep.store, metric=metric).cells == matrix(plain.store, metric=metric).cells


def test_an_audited_setting_that_beats_its_cell_is_a_win(sweep: Sweep) -> None:
    add(sweep, 0.01, [2.0, 2.5], audited=ASHA)
    add(sweep, 0.001, [3.0, 3.5])
    add(sweep, 0.1, [4.0, 4.5], audited=ASHA)
    add(sweep, 0.01, [9.0, 9.0], format="E5M2")
    known = found(sweep)
    assert (known.n, known.undecided) == (2, 0)
    assert known.wins == (Win("E4M3 adamw master", {"lr": 0.01}, "asha", 100, 2.25, 3.25),)
    assert known.wins[0].margin == 1.0
    assert known.sentences() == [
        "Audit: 2 settings that were to be stopped ran to the end; 1 would have won its cell; too few to say how often "
        "stopping costs a winner.",
        "  E4M3 adamw master lr=0.01, to be stopped by asha at step 100: val_loss 2.25 against 3.25",
    ]
    assert json.loads(json.dumps(known.to_dict()))["n"] == 2


@pytest.mark.parametrize(
    ("scope", "goal", "value", "won"),
    [
        ("cell", "minimize", 2.9, True),
        ("cell", "minimize", 3.0, False),
        ("cell", "minimize", 3.1, False),
        ("cell", "maximize", 2.9, False),
        ("cell", "maximize", 3.1, True),
        ("sweep", "minimize", 2.9, False),
        ("sweep", "minimize", 0.9, True),
    ],
)
def test_it_is_held_against_those_it_competed_with(
    sweep: Sweep, scope: str, goal: str, value: float, won: bool
) -> None:
    sweep.plan["space"]["early_terminate"]["scope"] = scope
    sweep.plan["metric"]["goal"] = goal
    add(sweep, 0.01, [value], audited=ASHA)
    add(sweep, 0.001, [3.0])
    add(sweep, 0.001, [1.0], format="E5M2")
    assert (found(sweep).n, len(found(sweep).wins)) == (1, won)


def test_what_was_stopped_is_no_rival(sweep: Sweep) -> None:
    """Its loss is of an earlier step."""
    add(sweep, 0.01, [3.0], audited=ASHA)
    add(sweep, 0.001, [4.0])
    add(sweep, 0.1, [2.0], ended=("asha", 200))
    assert len(found(sweep).wins) == 1


@pytest.mark.parametrize(
    ("final", "ended", "rival", "expected"),
    [
        (2.0, ("completed", 400), True, (1, 1, 0)),
        (None, ("completed", 400), True, (1, 0, 0)),
        (2.0, ("asha", 200), True, (0, 0, 1)),
        (2.0, ("completed", 400), False, (0, 0, 1)),
    ],
    ids=["won", "diverged", "ended after all", "nothing beside it"],
)
def test_what_counts(
    sweep: Sweep, final: float | None, ended: tuple[str, int], rival: bool, expected: tuple[int, int, int]
) -> None:
    add(sweep, 0.01, [final], audited=ASHA, ended=ended)
    if rival:
        add(sweep, 0.001, [3.0])
    known = found(sweep)
    assert (known.n, len(known.wins), known.undecided) == expected
    assert [sentence.split(";")[0].split(":")[1] for sentence in known.sentences() if "Audit" in sentence] == [
        " 1 setting that was to be stopped " + ("ran to the end" if known.n else "cannot be judged")
    ]


def test_nothing_audited_is_nothing_said(sweep: Sweep) -> None:
    add(sweep, 0.01, [2.0], ended=("asha", 100))
    assert found(sweep).sentences() == []


@pytest.mark.parametrize(("n", "wins"), [(0, 0), (20, 0), (20, 3), (50, 50)])
def test_the_interval_is_scipys_exact_one(n: int, wins: int) -> None:
    won = (Win("cell", {}, "asha", 80, 2.0, 2.5),) * wins
    known = Regret("val_loss", "cell", n, won, 0)
    expected = scipy.stats.binomtest(wins, n).proportion_ci(0.95, "exact") if n else (0, 1)
    assert known.interval == pytest.approx(tuple(expected))
    assert ("95 % interval" in "".join(known.sentences())) == (n >= 20)
