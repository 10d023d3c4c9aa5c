"""The control's ranks, read from the chunks that its own trial writes."""

import math

import pyarrow.compute as pc

from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store, chunks


class ControlRanks:
    """Effective ranks of the control, averaged over its replicates, as far as it has come."""

    def __init__(self, store: Store, pack: str) -> None:
        self._store, self._pack = store, pack
        self._read: set[str] = set()
        self._ranks: dict[int, dict[str, float]] = {}

    def at(self, step: int) -> dict[str, float] | None:
        """Effective rank by matrix at a rank check; None where the control has not reached it yet."""
        if step not in self._ranks:
            self._read_new_chunks()
        return self._ranks.get(step)

    def _read_new_chunks(self) -> None:
        for path in chunks(self._store, self._pack, "layers"):
            if path in self._read:
                continue
            self._read.add(path)
            rows = self._store.read_table(path, SCHEMAS["layers"]).select(["step", "matrix", "effective_rank"])
            checked = rows.filter(pc.field("effective_rank").is_valid())
            means = checked.group_by(["step", "matrix"]).aggregate([("effective_rank", "mean")])
            for row in means.to_pylist():
                rank = row["effective_rank_mean"]
                self._ranks.setdefault(row["step"], {})[row["matrix"]] = math.nan if rank is None else rank
