"""The matrix of a sweep: every scientific cell with its mean over replicates, and what stopping saved."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from orchestrator.results.cells import Cell, Place, Setting, Trial, best_setting, build_cell, mark_best
from orchestrator.results.journal import load_plan
from orchestrator.results.planned import Choice, choices, label, parameter, with_role
from orchestrator.results.queries import query
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store

#: Ends that a decision of the sweep brought about, and that spared the steps after them.
STOPPED: tuple[str, ...] = ("asha", "rank_collapse", "stalled", "diverged")
#: Metrics in nats a token.
LOSSES: tuple[str, ...] = ("loss", "val_loss", "best_val_loss")
#: Values along all axes, the row's first, as labels.
Position = tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """All cells of a sweep for one metric."""

    name: str
    metric: str
    #: ``minimize`` or ``maximize``.
    goal: str
    #: The sweep's own metric, by which the nuisance parameters are chosen whatever is shown.
    objective: str
    row_parameter: str
    column_parameters: tuple[str, ...]
    #: Nuisance parameters, chosen in each cell: the choice with the best mean of the `objective`.
    nuisance_parameters: tuple[str, ...]
    #: Scientific parameters that have the same value everywhere.
    fixed: dict[str, str]
    rows: list[str]
    columns: list[tuple[str, ...]]
    #: By row and column; combinations that were never planned are missing.
    cells: dict[Place, Cell]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the cells become a list."""
        values = {name: value for name, value in vars(self).items() if name != "cells"}
        return {**values, "cells": [asdict(cell) for cell in self.cells.values()]}


@dataclass(frozen=True)
class Savings:
    """What stopping saved, in steps of single trials. What is neither done nor saved is still to do, or failed."""

    planned: int
    done: int
    saved: int
    #: Steps saved by reason.
    saved_by_reason: dict[str, int]
    #: Trials by reason, or by status where they have not ended.
    lanes_by_reason: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def matrix(
    store: Store,
    rows: str = "format",
    columns: Sequence[str] = ("optimizer", "storage"),
    metric: str = "val_loss",
) -> Matrix:
    """The matrix of a consolidated sweep.

    Args:
        store: the sweep's folder.
        rows: the parameter down the side.
        columns: the parameters across the top; scientific parameters named nowhere are added, constant ones left out.
        metric: a column of ``steps`` (its last defined value counts; none for a diverged trial) or ``best_val_loss``.
            Trials that failed do not count. Smaller is better, unless the plan says otherwise of its own metric.
            The nuisance parameters are chosen by the plan's own metric, so that all matrices speak of the same trials.

    Raises:
        FileNotFoundError: the folder has no plan, or was never consolidated.
        ValueError: an unknown parameter or metric.
    """
    plan = load_plan(store)
    objective, goals = plan["metric"]["name"], {plan["metric"]["name"]: plan["metric"]["goal"]}
    trials = {name: _trials(store, name) for name in {objective, metric}}
    axes = list(dict.fromkeys([rows, *columns, *with_role(plan, "scientific")]))
    nuisance = [name for name in with_role(plan, "nuisance") if name not in axes]
    planned = choices(plan, nuisance, lambda pack, lane: _position(axes, pack, lane))
    controls = {_position(axes, pack, lane) for pack in plan["packs"] if pack["control"] for lane in pack["lanes"]}
    positions = list(dict.fromkeys([*planned, *_excluded_positions(plan, axes)]))
    varied = [i for i in range(1, len(axes)) if len({position[i] for position in positions}) > 1]
    fixed = {axes[i]: positions[0][i] for i in range(1, len(axes)) if positions and i not in varied}
    replicates = [name for name in with_role(plan, "replicate") if name not in axes]

    def place(position: Position) -> Place:
        return position[0], tuple(position[i] for i in varied)

    def cell(position: Position) -> Cell:
        settings = _settings(planned[position], trials[metric], replicates)
        scored = _settings(planned[position], trials[objective], replicates)
        best = best_setting(scored, goals[objective])
        chosen = settings[scored.index(best)] if best else None
        return build_cell(place(position), settings, chosen, position in controls)

    found = Matrix(
        name=plan["name"],
        metric=metric,
        goal=goals.get(metric, "minimize"),
        objective=objective,
        row_parameter=rows,
        column_parameters=tuple(axes[i] for i in varied),
        nuisance_parameters=tuple(nuisance),
        fixed=fixed,
        rows=list(dict.fromkeys(position[0] for position in positions)),
        columns=_in_order(place(position)[1] for position in positions),
        cells={place(position): cell(position) for position in planned},
    )
    return replace(found, cells=mark_best({**_excluded_cells(plan, found), **found.cells}, found.goal))


def savings(store: Store) -> Savings:
    """What stopping saved in a consolidated sweep.

    Raises:
        FileNotFoundError: the folder was never consolidated.
    """
    require_trials(store)
    trials = query(
        store, "SELECT coalesce(reason, status) AS reason, coalesce(step, 0) AS step, steps_planned FROM trials"
    )
    saved: Counter[str] = Counter()
    lanes: Counter[str] = Counter()
    for row in trials.to_pylist():
        lanes[row["reason"]] += 1
        if row["reason"] in STOPPED:
            saved[row["reason"]] += row["steps_planned"] - row["step"]
    return Savings(
        planned=sum(trials["steps_planned"].to_pylist()),
        done=sum(trials["step"].to_pylist()),
        saved=saved.total(),
        saved_by_reason=dict(saved),
        lanes_by_reason=dict(lanes),
    )


def require_trials(store: Store) -> None:
    """Refuse a run without a dataset.

    Raises:
        FileNotFoundError: it was never consolidated.
    """
    if not store.list("dataset/trials"):
        raise FileNotFoundError(f"no dataset in {store.uri}: consolidate it first")


def _trials(store: Store, metric: str) -> dict[str, Trial]:
    """Every trial of the dataset by key, with its value of the metric; an audited one as if it had been stopped."""
    require_trials(store)
    numeric = [f.name for f in SCHEMAS["steps"] if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    known = [*(name for name in numeric if name not in ("attempt", "step")), "best_val_loss"]
    if metric not in known:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(known)}")
    columns = "key, coalesce(reason, status) AS ended, step, audited"
    sql = f"SELECT {columns}, {metric} AS value FROM trials"
    if metric not in SCHEMAS["trials"].names:
        last = f"SELECT key, arg_max({metric}, step) AS value FROM steps WHERE {metric} IS NOT NULL GROUP BY key"
        value = "CASE WHEN reason = 'diverged' THEN NULL ELSE value END AS value"
        sql = f"SELECT {columns}, {value} FROM trials LEFT JOIN ({last}) USING (key)"
    rows = query(store, sql).to_pylist()
    if any(row["audited"] for row in rows):
        rows += query(store, _audited_sql(metric)).to_pylist()
    return {
        row["key"]: Trial(row["ended"], row["step"], row["value"] if _is_number(row["value"]) else None) for row in rows
    }


def _audited_sql(metric: str) -> str:
    """The audited trials as they stood at the step at which they were to be stopped."""
    last = f"arg_max(steps.{metric}, steps.step) FILTER (WHERE steps.{metric} IS NOT NULL)"
    value = "min(steps.val_loss)" if metric == "best_val_loss" else last
    return f"""
        SELECT key, any_value(audited) AS ended, any_value(audited_step) AS step, {value} AS value
        FROM trials JOIN steps USING (key) WHERE steps.step <= audited_step GROUP BY key
    """


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _settings(planned: Iterable[Choice], trials: Mapping[str, Trial], replicates: Sequence[str]) -> list[Setting]:
    """The choices with what came of their lanes."""
    return [
        Setting(choice.nuisance, [_trial(pack, lane, trials, replicates) for pack, lane in choice.lanes])
        for choice in planned
    ]


def _trial(
    pack: Mapping[str, Any], lane: Mapping[str, Any], trials: Mapping[str, Trial], replicates: Sequence[str]
) -> Trial:
    replicate = " ".join(f"{name}={parameter(name, pack, lane)}" for name in replicates)
    return trials.get(lane["key"], Trial("planned", None, None))._replace(replicate=replicate)


def _position(axes: Sequence[str], pack: Mapping[str, Any], lane: Mapping[str, Any]) -> Position:
    return tuple(label(parameter(name, pack, lane)) for name in axes)


def _in_order(columns: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Each column once, those alike in their first part together, each part in the order it first came up."""
    unique = list(dict.fromkeys(columns))
    order = [list(dict.fromkeys(parts)) for parts in zip(*unique, strict=True)]
    return sorted(unique, key=lambda column: [known.index(part) for known, part in zip(order, column, strict=True)])


def _excluded_positions(plan: Mapping[str, Any], axes: Sequence[str]) -> Iterable[Position]:
    """Positions of the exclusions that name every axis."""
    for excluded in plan["excluded"]:
        if all(name in excluded["scientific"] for name in axes):
            yield tuple(label(excluded["scientific"][name]) for name in axes)


def _excluded_cells(plan: Mapping[str, Any], of: Matrix) -> dict[Place, Cell]:
    """A cell for each place that an exclusion covers, also one that names only some of the parameters."""
    cells = {}
    for row, column in itertools.product(of.rows, of.columns):
        place = {of.row_parameter: row, **dict(zip(of.column_parameters, column, strict=True)), **of.fixed}
        for excluded in plan["excluded"]:
            named = {name: label(value) for name, value in excluded["scientific"].items()}
            if named and named.items() <= place.items():
                cells[row, column] = Cell(row, column, excluded=str(excluded["why"]))
                break
    return cells
