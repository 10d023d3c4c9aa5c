"""The control's ranks, read from the chunks that its own trial writes."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean

import pyarrow.compute as pc

from orchestrator.results.errors import DamagedError
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store, chunks

logger = logging.getLogger(__name__)


class ControlRanks:
    """Effective ranks of a control pack, averaged over the replicates of each setting, as far as it has come."""

    def __init__(self, store: Store, pack: str, settings: Mapping[str, str]) -> None:
        """``settings``: the nuisance setting of each of the control's lanes, by key."""
        self._store, self._pack, self._settings = store, pack, settings
        self._read: set[str] = set()
        #: By setting and step: ranks of every replicate by matrix and key.
        self._ranks: dict[tuple[str, int], dict[str, dict[str, float]]] = {}

    def at(self, setting: str, step: int) -> dict[str, float] | None:
        """Effective rank by matrix at a rank check; None where the control has not reached it yet.

        Empty where the control is past it and what it measured there is lost.
        """
        if (setting, step) not in self._ranks:
            self._read_new_chunks()
        ranks = self._ranks.get((setting, step), {})
        if not ranks and not any(known == setting and later > step for known, later in self._ranks):
            return None
        return {matrix: fmean(lanes.values()) for matrix, lanes in ranks.items()}

    def _read_new_chunks(self) -> None:
        for path in chunks(self._store, self._pack, "layers"):
            if path in self._read:
                continue
            try:
                table = self._store.read_table(path, SCHEMAS["layers"])
            except DamagedError as error:
                # Perhaps still being written, where writes are not atomic: it is looked at again the next time.
                logger.warning("%s", error)
                continue
            self._read.add(path)
            rows = table.select(["key", "step", "matrix", "effective_rank"])
            for row in rows.filter(pc.field("effective_rank").is_valid()).to_pylist():
                by_matrix = self._ranks.setdefault((self._settings[row["key"]], row["step"]), defaultdict(dict))
                by_matrix[row["matrix"]][row["key"]] = row["effective_rank"]
