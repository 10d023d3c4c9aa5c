"""Rows that were measured and cannot be read any more, and the step from which a pack must train again to have them."""

from collections import defaultdict
from collections.abc import Mapping

from orchestrator.results.errors import DamagedError
from orchestrator.results.journal import LaneState
from orchestrator.results.schema import CHUNK_TABLES, SCHEMAS
from orchestrator.results.store import Chunk, Store, chunks, parse_chunk


def first_missing(store: Store, pack: str, lanes: Mapping[str, LaneState]) -> int | None:
    """The first step of a pack that a damaged chunk held and no other does; None where everything is there.

    Rows of steps and matrices are missing where a lane reported later ones; where none reported yet, all are. What a
    damaged chunk of events held cannot be told, so all steps of its attempt are missing until later ones have gone
    through them again.

    Args:
        store: the run's folder.
        pack: one of its packs.
        lanes: what the journal says of the sweep's lanes, by key.
    """
    there: dict[str, set[tuple[str, int]]] = {"steps": set(), "layers": set()}
    steps_of: dict[int, set[int]] = defaultdict(set)
    damaged: list[Chunk] = []
    for path in (path for table in CHUNK_TABLES for path in chunks(store, pack, table)):
        chunk = parse_chunk(path)
        assert chunk is not None, "chunks lists nothing else"
        try:
            rows = store.read_table(path, SCHEMAS[chunk.table])
        except DamagedError:
            damaged.append(chunk)
            continue
        if chunk.table in there:
            steps = rows["step"].to_pylist()
            there[chunk.table].update(zip(rows["key"].to_pylist(), steps, strict=True))
            steps_of[chunk.attempt].update(steps)
    if not damaged:
        return None
    reached = {lane.key: lane.step for lane in lanes.values() if lane.pack == pack and lane.step}
    if not reached:
        return 1
    missing: set[int] = set()
    for key, last in reached.items():
        wanted = range(1, last + 1)
        missing |= {step for step in wanted for table in there.values() if (key, step) not in table}
    for attempt in {chunk.attempt for chunk in damaged if chunk.table == "events"}:
        later = (steps for number, steps in steps_of.items() if number > attempt)
        missing |= steps_of[attempt] - set().union(*later)
    return min(missing, default=None)
