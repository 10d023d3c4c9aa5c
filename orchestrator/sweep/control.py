"""The control's ranks, read from the chunks that its own trial writes."""

from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean

import pyarrow.compute as pc

from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store, chunks


class ControlRanks:
    """Effective ranks of a control pack, averaged over the replicates of each setting, as far as it has come."""

    def __init__(self, store: Store, pack: str, settings: Mapping[str, str]) -> None:
        """``settings``: the nuisance setting of each of the control's lanes, by key."""
        self._store, self._pack, self._settings = store, pack, settings
        self._read: set[str] = set()
        #: By setting and step: ranks of every replicate by matrix and key.
        self._ranks: dict[tuple[str, int], dict[str, dict[str, float]]] = {}

    def at(self, setting: str, step: int) -> dict[str, float] | None:
        """Effective rank by matrix at a rank check; None where the control has not reached it yet."""
        if (setting, step) not in self._ranks:
            self._read_new_chunks()
        ranks = self._ranks.get((setting, step))
        return None if ranks is None else {matrix: fmean(lanes.values()) for matrix, lanes in ranks.items()}

    def _read_new_chunks(self) -> None:
        for path in chunks(self._store, self._pack, "layers"):
            if path in self._read:
                continue
            self._read.add(path)
            rows = self._store.read_table(path, SCHEMAS["layers"]).select(["key", "step", "matrix", "effective_rank"])
            for row in rows.filter(pc.field("effective_rank").is_valid()).to_pylist():
                by_matrix = self._ranks.setdefault((self._settings[row["key"]], row["step"]), defaultdict(dict))
                by_matrix[row["matrix"]][row["key"]] = row["effective_rank"]
