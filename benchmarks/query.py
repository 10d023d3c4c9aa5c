"""How fast a large run's results are read: the matrix, every named query, and pandas over Ray Tune's result.json.

A run of 10 million rows of steps and 1,000 trials is written as a sweep leaves it, then consolidated; layers have as
many rows as steps, ten matrices at every tenth step. Files are in the page cache on all sides. DuckDB uses all cores,
pandas what it uses. result.json is written and read for some of the trials only, and its time taken times all trials
over those: reading JSON lines is linear in the lines.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from benchmarks import synthetic_run
from benchmarks.arguments import positive
from benchmarks.figures import show
from orchestrator.plan import Plan
from orchestrator.results.consolidate import consolidate
from orchestrator.results.matrix import matrix
from orchestrator.results.named import NAMED, ask
from orchestrator.results.store import Store

ROOT = Path(__file__).parents[1]
METRICS = ("val_loss", "stall_ratio")
#: Packs whose trials are also kept as result.json.
PANDAS_PACKS = 4


class Timed(NamedTuple):
    """What was done, and the median of how long it took."""

    result: Any
    seconds: float


def timed(action: Callable[[], Any], rounds: int = 1) -> Timed:
    """Do it so many times."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = action()
        took.append(time.perf_counter() - began)
    return Timed(result, statistics.median(took))


def matrix_of_files(files: Sequence[Path], metric: str) -> pd.DataFrame:
    """The matrix as one makes it with pandas: the best learning rate of each cell, by the mean over seeds."""
    last = []
    for path in files:
        rows = pd.read_json(path, lines=True)
        if metric in rows:
            last.append({**rows["config"].iloc[-1], metric: rows[metric].dropna().iloc[-1]})
    means = pd.DataFrame(last).groupby(["format", "optimizer", "lr"])[metric].mean()
    return means.groupby(["format", "optimizer"]).min().unstack("optimizer")


def with_pandas(folder: Path, plan: Plan, store: Store) -> float:
    """Seconds that pandas takes for a matrix of all trials, from those of a few packs.

    Raises:
        SystemExit: its numbers are not ours.
    """
    packs = [pack for pack in plan.packs if pack.lanes[0].config.format != "fp32"][:PANDAS_PACKS]
    files = [path for pack in packs for path in synthetic_run.write_result_json(folder, pack)]
    found, seconds = timed(lambda: matrix_of_files(files, METRICS[1]))
    keys = ", ".join(f"'{lane.key}'" for pack in packs for lane in pack.lanes)
    sql = f"""
        SELECT min(value) AS best FROM (
            SELECT lr, format, optimizer, avg(last) AS value FROM trials JOIN (
                SELECT key, arg_max({METRICS[1]}, step) AS last FROM steps WHERE key IN ({keys}) GROUP BY key
            ) USING (key) GROUP BY ALL
        ) GROUP BY format, optimizer ORDER BY best
    """
    ours = ask(store, sql)["best"].to_numpy()
    if not np.allclose(np.sort(found.to_numpy().ravel()), ours, rtol=1e-5):
        raise SystemExit(f"pandas has {found}, we have {ours}")
    return seconds * sum(len(pack.lanes) for pack in plan.packs) / len(files)


def command(run: Path, metric: str) -> None:
    """The whole ``altgrad matrix`` command, from Enter to its end."""
    words = [sys.executable, "-m", "orchestrator.cli", "matrix", str(run), "--metric", metric, "--json"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})


def measure(run: Path, plan: Plan, rounds: int, folder: Path) -> dict[str, Any]:
    """Time everything on a run that was just written."""
    store = Store.open(run)
    consolidated = timed(lambda: consolidate(store))
    rows = consolidated.result.rows
    unchanged = timed(lambda: consolidate(store), rounds)
    matrices = {metric: timed(lambda metric=metric: matrix(store, metric=metric), rounds).seconds for metric in METRICS}
    named = {name: timed(lambda name=name: ask(store, f"@{name}"), rounds).seconds for name in NAMED}
    size = sum(size for path, size in store.sizes("dataset/steps").items())
    pandas_s = with_pandas(folder, plan, store)
    slowest = max(matrices.values())
    return {
        "rows": rows["steps"],
        "matrix_s": slowest,
        "slowest_named_query_s": max(named.values()),
        "pandas_over_ours": pandas_s / slowest,
        "bytes_per_step_row": size / rows["steps"],
        "trials": rows["trials"],
        "layer_rows": rows["layers"],
        "matrix_by_metric_s": matrices,
        "named_query_s": named,
        "pandas_s": pandas_s,
        "pandas_trials_read": PANDAS_PACKS * synthetic_run.SEEDS,
        "consolidate_s": consolidated.seconds,
        "consolidate_unchanged_s": unchanged.seconds,
        "matrix_command_s": {metric: timed(lambda metric=metric: command(run, metric)).seconds for metric in METRICS},
        "threads": os.cpu_count(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=positive, default=10_000_000, metavar="N", help="rows of steps (10,000,000)")
    parser.add_argument("--trials", type=positive, default=1000, metavar="N", help="(1,000)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="of which medians are taken (3)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args(arguments)
    load = float(np.round(os.getloadavg()[0], 2))
    with tempfile.TemporaryDirectory(prefix="altgrad-") as name:
        folder = Path(name)
        plan = synthetic_run.make(folder / "run", options.trials, options.rows)
        result = measure(folder / "run", plan, options.rounds, folder / "ray")
    show({**result, "load_average": load}, options.json)


if __name__ == "__main__":
    main()
