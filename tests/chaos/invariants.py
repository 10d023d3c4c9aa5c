"""What must hold of a sweep's folder, whatever happened to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.results.consolidate import ConsolidateReport, consolidate
from orchestrator.results.journal import Journal
from orchestrator.results.store import Store

#: What a row is of, by table.
_IDENTITY = {"steps": ["key", "step"], "layers": ["key", "step", "matrix"]}
#: Columns of a trial that no fault may change.
_TRIAL = ["key", "pack", "status", "reason", "step", "loss", "val_loss", "best_val_loss", "error"]


@dataclass(frozen=True)
class Kept:
    """What a run's folder holds."""

    report: ConsolidateReport
    #: Rows of ``steps`` and ``layers``, ordered by what they are of, without the attempt that measured them.
    rows: dict[str, pa.Table]
    trials: pa.Table
    journal: list[dict]

    @classmethod
    def read(cls, run: Path) -> "Kept":
        """Consolidate and read everything."""
        store = Store.open(run)
        report = consolidate(store)
        rows = {table: _ordered(run / "dataset" / table, identity) for table, identity in _IDENTITY.items()}
        trials = pq.read_table(run / "dataset/trials/trials.parquet").select(_TRIAL)
        return cls(report, rows, trials, Journal(store).read())


def _ordered(folder: Path, identity: list[str]) -> pa.Table:
    if not folder.exists():
        return pa.table({name: pa.array([], pa.int64() if name == "step" else pa.string()) for name in identity})
    table = pq.read_table(folder).drop_columns(["attempt"])
    return table.sort_by([(name, "ascending") for name in identity]).combine_chunks()


def broken_at_the_end(kept: Kept, undisturbed: Kept) -> Iterator[str]:
    """What does not hold of a run that has ended, as sentences; nothing where all is well."""
    yield from broken_on_the_way(kept, undisturbed)
    for table, expected in undisturbed.rows.items():
        if len(kept.rows[table]) != len(expected):
            yield f"{len(kept.rows[table])} rows of {table}, not {len(expected)}"
    if not kept.trials.equals(undisturbed.trials):
        yield f"trials are {kept.trials.to_pylist()}, not {undisturbed.trials.to_pylist()}"
    unended = set(undisturbed.trials["key"].to_pylist()) - {key for key, *_ in _ends(kept)}
    if unended:
        yield f"the journal has no end of {sorted(unended)}"
    if kept.report.damaged:
        yield f"rows are still missing for {[chunk.path for chunk in kept.report.damaged]}"


def broken_on_the_way(kept: Kept, undisturbed: Kept) -> Iterator[str]:
    """What does not hold of a run that was cut off at any moment.

    Every row is the one that an undisturbed run has there, no row is there twice, every row up to a pack's last report
    is there unless a damaged chunk of that pack is named, and no trial ends in two ways.
    """
    reported: dict[str, int] = {}
    for record in kept.journal:
        if record["event"] == "reported":
            reported[record["pack"]] = record["step"]
    damaged = {(chunk.path.split("/")[1], _table(chunk.path)) for chunk in kept.report.damaged}
    for table, expected in undisturbed.rows.items():
        found, wanted = _identities(kept.rows[table], table), _identities(expected, table)
        there = set(found)
        if len(there) < len(found):
            yield f"{len(found) - len(there)} rows of {table} are there twice"
        if there - set(wanted):
            yield f"{len(there - set(wanted))} rows of {table} that no trial was to measure"
        same = expected.filter(pa.array(np.array([identity in there for identity in wanted], bool)))
        if there and not same.equals(kept.rows[table].select(same.column_names)):
            yield f"rows of {table} are not those of an undisturbed run"
        packs, steps = expected["pack"].to_pylist(), expected["step"].to_pylist()
        missing = {
            pack
            for identity, pack, step in zip(wanted, packs, steps, strict=True)
            if identity not in there and step <= reported.get(pack, 0) and (pack, table) not in damaged
        }
        if missing:
            yield f"rows of {table} that were reported are missing, and no chunk is named: {sorted(missing)}"
    ends = [end[0] for end in _ends(kept)]
    if len(ends) > len(set(ends)):
        yield f"trials ended in two ways: {sorted(_ends(kept))}"


def _ends(kept: Kept) -> set[tuple[str, str, int]]:
    return {(r["key"], r["reason"], r["step"]) for r in kept.journal if r["event"] == "lane_ended"}


def _identities(table: pa.Table, name: str) -> list[tuple]:
    return list(zip(*(table[column].to_pylist() for column in _IDENTITY[name]), strict=True))


def _table(path: str) -> str:
    return path.rsplit("/", 1)[1].split("-")[0]
