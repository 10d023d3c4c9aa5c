"""The table of trials: one row a lane, made from the plan, the journal and the steps."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.results.journal import LaneState, SweepState
from orchestrator.results.schema import SCHEMAS

#: What `summaries` reads of the steps.
SUMMARISED: tuple[str, ...] = ("key", "step", "loss", "val_loss")


def trials_table(plan: Mapping[str, Any], state: SweepState, measured: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """One row for each lane of the plan, in its order.

    Args:
        plan: the sweep's plan.
        state: what the journal says of it.
        measured: the `summaries` of all steps.
    """
    rows = [_row(pack, lane, state, measured.get(lane["key"], {})) for pack in plan["packs"] for lane in pack["lanes"]]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["trials"])


def summaries(steps: pa.Table) -> dict[str, dict[str, Any]]:
    """By key: the last ``step`` and the ``loss`` there, the last ``val_loss`` and the ``best_val_loss``.

    Args:
        steps: with the columns `SUMMARISED`, sorted by key and step.
    """
    # The order of the rows decides what is last, and threads would not keep it.
    found = steps.group_by("key", use_threads=False).aggregate(
        [
            ("step", "max"),
            ("loss", "last", pc.ScalarAggregateOptions(skip_nulls=False)),
            ("val_loss", "last", pc.ScalarAggregateOptions(skip_nulls=True)),
            ("val_loss", "min"),
        ]
    )
    rows = found.rename_columns(["key", "step", "loss", "val_loss", "best_val_loss"]).to_pylist()
    return {row.pop("key"): row for row in rows}


def _row(
    pack: Mapping[str, Any], lane: Mapping[str, Any], state: SweepState, measured: Mapping[str, Any]
) -> dict[str, Any]:
    known: LaneState = state.lanes[lane["key"]]
    config = lane["config"]
    layers = config["layers"]
    return {
        "key": lane["key"],
        "pack": pack["pack"],
        "cell": pack["cell"],
        "control": pack["control"],
        **{name: config[name] for name in ("format", "optimizer", "storage", "lr", "seed")},
        "layers": layers if isinstance(layers, str) else json.dumps(layers),
        "config": json.dumps(config, sort_keys=True),
        "status": known.status,
        "reason": known.reason,
        "audited": known.audited and known.audited["reason"],
        "audited_step": known.audited and known.audited["step"],
        "step": measured.get("step"),
        "steps_planned": config["steps"],
        "loss": measured.get("loss"),
        # A validation loss from before it diverged says nothing of where it ended.
        "val_loss": None if known.reason == "diverged" else measured.get("val_loss"),
        "best_val_loss": measured.get("best_val_loss"),
        "attempts": state.attempts.get(pack["pack"], 0),
        "seconds": state.seconds.get(pack["pack"]),
        "error": known.message if known.status == "failed" else None,
    }
