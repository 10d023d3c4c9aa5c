"""What a metric did over the steps of each cell's setting: mean and range over replicates, thinned to a screen.

A point is the mean over a few steps. A line ends where the first of its replicates ended: the mean of the others is of
other runs.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from orchestrator.results.cells import Place
from orchestrator.results.queries import query
from orchestrator.results.report.run import ReportedRun, Setting

#: Points of a line, and of all lines of a run together: what a screen shows, and what a file should hold.
_POINTS_PER_LINE, _POINTS, _LEAST_POINTS = 50, 5_000, 30


class Metric(NamedTuple):
    """Something drawn over steps."""

    name: str
    #: What it is, in words and units.
    title: str
    #: Over the columns of ``steps`` and ``weights``, the elements of the trial's quantized matrices.
    sql: str


LEARNING = (
    Metric("val_loss", "validation loss, nats a token", "val_loss"),
    Metric("loss", "training loss, nats a token", "loss"),
    Metric("grad_norm", "gradient norm before clipping", "grad_norm"),
    Metric("effective_rank_mean", "mean effective rank of the matrices", "effective_rank_mean"),
)
DISCRETE = (
    Metric("stall_ratio", "stall ratio: share of weights with a gradient whose code stays", "stall_ratio"),
    Metric("flip_rate", "flips: share of weights whose code changes in a step", "flips / weights"),
    Metric("oscillation_share", "oscillations: share of flips that undo the last one", "oscillations / flips"),
    Metric("rescale_rate", "rescale flips: share of codes changed by a new scale", "rescale_flips / weights"),
    Metric("rung_distance", "rungs moved by weights that flip", "rung_distance"),
    Metric("weight_underflowed", "share of weights that became zero by rounding", "weight_underflowed"),
)


class Line(NamedTuple):
    """The values of all metrics over the steps of one cell."""

    place: Place
    setting: Setting
    #: By metric: steps, means, and where there are several replicates the smallest and the largest.
    values: dict[str, list[list[float]]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "row": self.place[0],
            "column": list(self.place[1]),
            "n": len(self.setting.lanes),
            "values": self.values,
        }


def curves(run: ReportedRun, metrics: Sequence[Metric]) -> list[Line]:
    """A line for each cell that has rows, in the plan's order."""
    settings = run.shown_settings
    lanes = [(lane.key, i) for i, setting in enumerate(settings) for lane in setting.lanes]
    last = max((trial["step"] or 0 for trial in run.trials), default=0)
    if not lanes or not last:
        return []
    points = min(_POINTS_PER_LINE, max(_LEAST_POINTS, _POINTS // len(settings)))
    rows = query(run.store, _sql(lanes, metrics, math.ceil(last / points))).to_pylist()
    lines = [Line(setting.place, setting, {metric.name: [] for metric in metrics}) for setting in settings]
    for row in rows:
        line = lines[row["line"]]
        for metric in metrics:
            step, mean, low, high, n = (row[f"{metric.name}_{part}"] for part in ("step", "mean", "low", "high", "n"))
            if n == row["replicates"]:
                spread = [rounded(low), rounded(high)] if n > 1 else []
                line.values[metric.name].append([step, rounded(mean), *spread])
    return [line for line in lines if any(line.values.values())]


def rounded(value: float) -> float:
    """A number to the digits that a chart can show."""
    return float(f"{value:.4g}")


def values(rows: Iterable[Sequence[str | int]]) -> str:
    """Rows for SQL's VALUES."""
    return ", ".join(f"({', '.join(map(_literal, row))})" for row in rows)


def _literal(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def _sql(lanes: Sequence[tuple[str, int]], metrics: Sequence[Metric], width: int) -> str:
    """By line and bin of ``width`` steps: of each metric the mean over replicates of their means, and the range."""
    finite = ", ".join(f"CASE WHEN isfinite({each.sql}) THEN {each.sql} END AS {each.name}" for each in metrics)
    each_lane = ", ".join(
        f"avg({each.name}) AS {each.name}, max(step) FILTER ({each.name} IS NOT NULL) AS {each.name}_step"
        for each in metrics
    )
    over_lanes = ", ".join(
        f"max({m}_step) AS {m}_step, count({m}) AS {m}_n, "
        f"avg({m}) AS {m}_mean, min({m}) AS {m}_low, max({m}) AS {m}_high"
        for m in (each.name for each in metrics)
    )
    return f"""
        WITH lanes(key, line) AS (VALUES {values(lanes)}),
        known AS (SELECT line, count(DISTINCT key) AS replicates FROM steps JOIN lanes USING (key) GROUP BY line),
        sizes AS (
            SELECT key, sum(elements) AS weights
            FROM (SELECT DISTINCT key, matrix, elements FROM layers WHERE flips IS NOT NULL) GROUP BY key
        ),
        measured AS (
            SELECT key, line, step, {finite} FROM steps JOIN lanes USING (key) LEFT JOIN sizes USING (key)
        ),
        binned AS (
            SELECT key, line, (step - 1) // {width} AS bin, {each_lane} FROM measured GROUP BY key, line, bin
        )
        SELECT line, bin, any_value(replicates) AS replicates, {over_lanes}
        FROM binned JOIN known USING (line) GROUP BY line, bin ORDER BY line, bin
    """
