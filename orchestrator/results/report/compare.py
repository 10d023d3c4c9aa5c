"""Several runs beside each other: what was different about them, and the cells that they share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.results.report.answer import measured
from orchestrator.results.report.device import held
from orchestrator.results.report.run import ReportedRun
from orchestrator.results.report.wording import DASH, spoken

#: A row of a table: its name, and a value for each run.
Row = tuple[str, list[str]]


def differences(runs: Sequence[ReportedRun]) -> list[Row]:
    """Every key of the search spaces, and of the corpora, devices and versions, that is not alike in all runs."""
    sides = [_facts(run) for run in runs]
    keys = dict.fromkeys(key for side in sides for key in side)
    rows = [(key, [side.get(key, DASH) for side in sides]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def shared_cells(runs: Sequence[ReportedRun]) -> list[Row]:
    """The numbers of every cell that at least two runs have, each run by its own metric."""
    sides = [_cells(run) for run in runs]
    keys = dict.fromkeys(key for side in sides for key in side)
    rows = [(key, [side.get(key, DASH) for side in sides]) for key in keys]
    return [(key, values) for key, values in rows if sum(value != DASH for value in values) > 1]


def _facts(run: ReportedRun) -> dict[str, str]:
    space = {key: value for key, value in run.plan["space"].items() if key not in ("name", "description", "wandb")}
    device = held(run.plan, run.records).device or "not recorded"
    facts = {"corpus hash": str(run.plan["corpus"]["hash"])[:16], "device": device, **_flat(space)}
    for record in run.records:
        if record["event"] == "sweep_started":
            facts |= {f"version of {name}": str(value) for name, value in (record.get("versions") or {}).items()}
    return facts


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _cells(run: ReportedRun) -> dict[str, str]:
    """Measured cells by everything that says which cell it is, in whatever order the run's matrix has it."""
    names = (run.matrix.row_parameter, *run.matrix.column_parameters)
    found = {}
    for cell in run.matrix.cells.values():
        if cell.mean is not None:
            where = dict(zip(names, (cell.row, *cell.column), strict=True)) | run.matrix.fixed
            found[spoken(dict(sorted(where.items())))] = measured(cell)
    return found
