"""Every query that has a name says what pandas works out from the same rows, for one run and for several."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import Sweep

from orchestrator.results.consolidate import consolidate
from orchestrator.results.named import NAMED, ask, find
from orchestrator.results.queries import query
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import ChunkWriter, Store

STEPS, MATRICES = 100, ["attn", "mlp"]
DISCRETE = [
    *("weight_saturated", "weight_underflowed", "activation_saturated", "activation_underflowed"),
    *("gradient_saturated", "gradient_underflowed"),
]


def measured(rng: np.random.Generator, rows: int, quantized: bool) -> dict[str, np.ndarray]:
    """What both steps and layers hold of codes; nothing, where nothing has codes."""
    if not quantized:
        return {}
    stall_ratio = rng.uniform(0, 1, rows)
    stall_ratio[rng.random(rows) < 0.2] = 1.0
    return {
        "updates": rng.integers(500, 1000, rows),
        "flips": rng.integers(0, 500, rows),
        "stall_ratio": stall_ratio,
        "rescale_flips": np.where(rng.random(rows) < 0.1, 7, 0),
        "oscillations": rng.integers(0, 50, rows),
        "rung_distance": np.where(rng.random(rows) < 0.1, np.nan, rng.uniform(1, 2, rows)),
        **{name: rng.uniform(0, 0.1, rows) for name in DISCRETE[:4]},
        **{name: np.full(rows, np.nan) for name in DISCRETE[4:]},
    }


def train(sweep: Sweep, pack: dict, rng: np.random.Generator, last: int = STEPS, end: str = "completed") -> None:
    """A pack's rows up to its last step, warnings, and its ends."""
    quantized = pack["scientific"]["format"] != "fp32"
    writer = ChunkWriter(sweep.store, pack["pack"], 1)
    sweep.journal.append({"event": "pack_started", "pack": pack["pack"], "attempt": 1})
    seconds = float(rng.uniform(5, 10))
    report = {"event": "reported", "pack": pack["pack"], "attempt": 1, "step": last, "metrics": {}}
    sweep.journal.append({**report, "seconds": seconds})
    for lane in pack["lanes"]:
        steps = np.arange(1, last + 1)
        loss = 2 + 2 * np.exp(-steps / 30) + rng.normal(0, 0.1, last)
        val_loss = np.where(steps % 10 == 0, loss + rng.normal(0, 0.1, last), np.nan)
        more = {"loss": loss, "val_loss": val_loss, "grad_norm": rng.uniform(0, 1, last), "tokens": steps * 64}
        writer.append("steps", {"key": [lane["key"]] * last, "step": steps, **more, **measured(rng, last, quantized)})
        rows = last * len(MATRICES)
        writer.append(
            "layers",
            {
                "key": [lane["key"]] * rows,
                "step": np.repeat(steps, len(MATRICES)),
                "matrix": MATRICES * last,
                "format": [pack["scientific"]["format"]] * rows,
                **measured(rng, rows, quantized),
            },
        )
        warned = sorted({*rng.integers(1, last, 3).tolist()})
        many = {"value": rng.uniform(20, 60, len(warned)), "reference": np.full(len(warned), 80.0)}
        kinds = {"kind": ["rank_warning"] * len(warned), "matrix": ["attn"] * len(warned), **many}
        writer.append("events", {"key": [lane["key"]] * len(warned), "step": warned, **kinds})
        sweep.end(pack, lane["key"], end, last)


def make_run(folder: Path, seed: int) -> Store:
    """A sweep with ends of several kinds, and with a pair of one grid that agrees but for one row."""
    sweep, rng = Sweep(Store.open(folder)), np.random.default_rng(seed)
    for format in ("fp32", "E4M3", "E5M2"):
        for lr in (0.001, 0.01):
            train(sweep, sweep.add_pack(2, format=format, lr=lr, steps=STEPS, control=format == "fp32"), rng)
    train(sweep, sweep.add_pack(2, format="E6M1", steps=STEPS), rng, last=40, end="stalled")
    train(sweep, sweep.add_pack(2, format="E6M1", lr=0.01, steps=STEPS), rng, last=30, end="diverged")
    for format in ("E0M7", "E1M6"):
        train(sweep, sweep.add_pack(2, format=format, steps=STEPS), np.random.default_rng(seed + 1))
    odd = {"key": ["k0090"], "step": [17], "loss": [99.0], "flips": [1]}
    ChunkWriter(sweep.store, "p009", 1).append("steps", odd)
    sweep.add_pack(format="E3M4", steps=STEPS)
    consolidate(sweep.store)
    return sweep.store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / "monday", 1), make_run(folder / "friday", 2)]


@pytest.fixture(scope="module")
def frames(stores: list[Store]) -> dict[str, pd.DataFrame]:
    """All rows of each table, by name, with the run each is of."""
    found = {}
    for table in SCHEMAS:
        parts = [query(store, f"SELECT * FROM {table}").to_pandas().assign(run=store.name) for store in stores]
        found[table] = pd.concat(parts, ignore_index=True)
    return found


Frames = dict[str, pd.DataFrame]
TRIAL, PLACE = ["run", "key"], ["run", "format", "matrix"]


def best(f: Frames) -> pd.DataFrame:
    groups = f["trials"][f["trials"].status != "failed"].groupby(["run", "cell", "lr"])
    found = pd.DataFrame(
        {
            "one_trial": groups.key.min(),
            "n": groups.val_loss.count(),
            "diverged": groups.reason.apply(lambda reasons: (reasons == "diverged").sum()),
            "val_loss": groups.val_loss.apply(lambda x: x.astype(float).mean()),
            "std": groups.val_loss.apply(lambda x: x.astype(float).std()),
            "lowest": groups.val_loss.min(),
            "highest": groups.val_loss.max(),
            "step": groups.step.min(),
        }
    ).reset_index()
    found = found[found.n > 0]
    return found.assign(bad=found.diverged > 0).sort_values(["bad", "val_loss"]).drop(columns="bad")


def ends(f: Frames) -> pd.DataFrame:
    last = f["events"].sort_values(["step", "attempt"]).drop_duplicates(["run", "key", "kind"], keep="last")
    last = last[[*TRIAL, "kind", "value", "reference", "threshold", "message"]]
    found = f["trials"].merge(last, how="left", left_on=[*TRIAL, "reason"], right_on=[*TRIAL, "kind"])
    found["ended"] = found.reason.fillna(found.status)
    columns = ["run", "cell", "lr", "seed", "ended", "step", "value", "reference", "threshold", "message"]
    return found.sort_values(["run", "ended", "step", "cell", "lr", "seed"])[columns]


def stalls(f: Frames) -> pd.DataFrame:
    rows = f["layers"].dropna(subset="stall_ratio")
    groups = rows.assign(stalled=rows.stall_ratio >= 0.9999).groupby(PLACE)
    found = groups.agg(mean=("stall_ratio", "mean"), highest=("stall_ratio", "max"), stalled=("stalled", "mean"))
    return (
        found.rename(columns={"mean": "stall_ratio"})
        .reset_index()
        .sort_values(["stall_ratio", *PLACE], ascending=[False, True, True, True])
    )


def first_stalls(f: Frames) -> pd.DataFrame:
    rows = f["layers"][f["layers"].stall_ratio >= 0.9999]
    firsts = rows.groupby([*TRIAL, "matrix"]).step.min().reset_index().merge(f["trials"][[*TRIAL, "cell"]], on=TRIAL)
    groups = firsts.groupby(["run", "cell", "matrix"]).step
    found = pd.DataFrame({"first_step": groups.min(), "median_step": groups.median(), "trials": groups.count()})
    return found.reset_index().sort_values(["first_step", "run", "cell", "matrix"])


def flips(f: Frames) -> pd.DataFrame:
    rows = f["steps"].merge(f["trials"][[*TRIAL, "cell", "steps_planned"]], on=TRIAL)
    rows["part"] = np.ceil(rows.step * 20 / rows.steps_planned).astype(int)
    groups = rows.groupby(["run", "cell", "part"])
    found = pd.DataFrame(
        {
            "to_step": groups.step.max(),
            "trials": groups.key.nunique(),
            "flips_per_update": groups.flips.sum() / groups.updates.sum(),
            "stall_ratio": groups.stall_ratio.mean(),
        }
    )
    found = found[groups.stall_ratio.count() > 0]
    return found.reset_index().drop(columns="part").sort_values(["run", "cell", "to_step"])


def warnings(f: Frames) -> pd.DataFrame:
    rows = f["events"][f["events"].kind == "rank_warning"].merge(f["trials"][[*TRIAL, "cell"]], on=TRIAL)
    groups = rows.assign(ratio=rows.value / rows.reference).groupby(["run", "cell", "matrix"])
    found = groups.agg(
        warnings=("key", "size"), trials=("key", "nunique"), first_step=("step", "min"), lowest_ratio=("ratio", "min")
    )
    return found.reset_index().sort_values(["warnings", "run", "cell"], ascending=[False, True, True])


def by_cell(f: Frames) -> "pd.api.typing.DataFrameGroupBy":
    rows = f["steps"].merge(f["trials"][[*TRIAL, "cell"]], on=TRIAL)
    return rows[rows.cell.isin(rows[rows.flips.notna()].cell)].groupby(["run", "cell"])


def rescales(f: Frames) -> pd.DataFrame:
    groups = by_cell(f)
    moved = groups.rescale_flips.apply(lambda x: (x.fillna(0) > 0).sum())
    found = pd.DataFrame({"flips": groups.flips.sum(), "rescale_flips": groups.rescale_flips.sum()})
    found["rescale_share"] = found.rescale_flips / (found.flips + found.rescale_flips)
    found["steps_with_rescale"] = moved / groups.rescale_flips.count()
    return found.reset_index().sort_values(["rescale_share", "run", "cell"], ascending=[False, True, True])


def oscillation(f: Frames) -> pd.DataFrame:
    groups = by_cell(f)
    found = pd.DataFrame({"flips": groups.flips.sum(), "oscillations": groups.oscillations.sum()})
    found["oscillating"] = found.oscillations / found.flips
    found["rung_distance"] = groups.rung_distance.mean()
    return found.reset_index().sort_values(["oscillating", "run", "cell"], ascending=[False, True, True])


def saturation(f: Frames) -> pd.DataFrame:
    found = f["layers"].groupby(PLACE)[DISCRETE].mean()
    return found.dropna(how="all").reset_index().sort_values(PLACE)


def cost(f: Frames) -> pd.DataFrame:
    tokens = f["steps"].groupby(TRIAL).tokens.max().reset_index()
    rows = f["trials"].merge(tokens, on=TRIAL, how="left")
    packs = rows.groupby(["run", "cell", "pack"]).agg(
        trials=("key", "size"), seconds=("seconds", "first"), steps=("step", "sum"), tokens=("tokens", "sum")
    )
    packs = packs.assign(packs=1).groupby(["run", "cell"])[["packs", "trials", "seconds", "steps", "tokens"]].sum()
    packs["tokens_per_second"] = packs.tokens / packs.seconds
    packs.loc[packs.seconds == 0, ["seconds", "steps", "tokens", "tokens_per_second"]] = np.nan
    return packs.reset_index().sort_values(["seconds", "run", "cell"], ascending=[False, True, True])


def slowest(f: Frames) -> pd.DataFrame:
    goal = f["trials"].groupby("run").val_loss.median().rename("goal").reset_index()
    rows = f["steps"].merge(goal, on="run")
    reached = rows[rows.val_loss <= rows.goal].groupby(TRIAL)[["step", "tokens"]].min()
    reached.columns = ["reached_step", "reached_tokens"]
    found = f["trials"].merge(goal, on="run").merge(reached.reset_index(), on=TRIAL, how="left")
    found = found[found.step.notna()].sort_values(
        ["reached_step", "best_val_loss"], ascending=[False, False], na_position="first"
    )
    return found[["run", "cell", "lr", "seed", "reached_step", "reached_tokens", "best_val_loss", "goal"]]


def control(f: Frames) -> pd.DataFrame:
    """Two seeds in each run; the odd row is one of the first seed's."""
    rows = []
    for run in f["trials"].run.unique():
        pairs = f["steps"][f["steps"].run == run].set_index(["key", "step"]).loss
        for seed in (0, 1):
            gap = (pairs[f"k008{seed}"] - pairs[f"k009{seed}"]).abs()
            unequal = (gap > 0).sum()
            first = gap[gap > 0].index.min() if unequal else None
            rows.append([run, "adamw", "master", "all", 0.001, seed, STEPS, unequal, first, gap.max()])
    names = ["run", "optimizer", "storage", "layers", "lr", "seed"]
    found = pd.DataFrame(rows, columns=[*names, "steps", "unequal", "first_unequal", "largest_difference"])
    return found.sort_values(["unequal", "run", "seed"], ascending=[False, True, True])


ORACLES: dict[str, Callable[[Frames], pd.DataFrame]] = {
    "best": best, "control": control, "cost": cost, "ends": ends, "first-stalls": first_stalls, "flips": flips,
    "oscillation": oscillation, "rescales": rescales, "saturation": saturation, "slowest": slowest, "stalls": stalls,
    "warnings": warnings,
}  # fmt: skip


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal columns, rows and order; numbers to the digits of float32."""
    assert list(found.columns) == list(expected.columns)
    assert len(found) == len(expected) > 0
    for name in found.columns:
        ours, theirs = found[name], expected[name]
        if pd.api.types.is_numeric_dtype(ours):
            np.testing.assert_allclose(
                ours.to_numpy(float, na_value=np.nan), theirs.astype(float).to_numpy(), rtol=1e-5, err_msg=name
            )
        else:
            assert ours.where(ours.notna(), None).tolist() == theirs.where(theirs.notna(), None).tolist(), name


def test_every_query_has_an_oracle() -> None:
    assert NAMED.keys() == ORACLES.keys()


@pytest.mark.parametrize("name", NAMED)
def test_several_runs_are_answered_as_pandas_does(stores: list[Store], frames: Frames, name: str) -> None:
    assert_same(ask(stores, f"@{name}").to_pandas(), ORACLES[name](frames))


@pytest.mark.parametrize("name", NAMED)
def test_one_run_is_answered_alike_without_a_run_column(stores: list[Store], frames: Frames, name: str) -> None:
    one = {table: frame[frame.run == "friday"] for table, frame in frames.items()}
    assert_same(ask(stores[1], f"@{name}").to_pandas(), ORACLES[name](one).drop(columns="run"))


@pytest.mark.parametrize("name", NAMED)
def test_a_sweep_that_has_not_started_has_an_answer(tmp_path: Path, name: str) -> None:
    sweep = Sweep(Store.open(tmp_path / "run"))
    sweep.add_pack()
    consolidate(sweep.store)
    assert ask(sweep.store, f"@{name}").num_rows <= 1


def test_every_query_says_in_a_sentence_what_it_answers() -> None:
    for each in NAMED.values():
        assert each.sql.startswith(f"-- {each.description}\n")
        assert each.description.endswith(".")
        assert 20 < len(each.description) <= 117


@pytest.mark.parametrize(
    ("name", "hint"),
    [("@stals", "did you mean @stalls?"), ("@COST", "did you mean @cost?"), ("@xyzzy", "known: @best, @control")],
)
def test_an_unknown_name_gives_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"unknown query '{name}'; {hint}".replace("?", r"\?")):
        find(name)
