"""Chunks to dataset: one Parquet file a pack and table, without duplicates, rebuilt only where its chunks changed.

Each dataset file carries in its own metadata what it was made from, so that nothing else has to be believed. A file
that nobody touched since is known by its footer, and its rows are not read again. It is safe to run at any time, also
while the sweep runs, and as often as one likes.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from orchestrator.results.errors import DamagedError
from orchestrator.results.holes import first_missing
from orchestrator.results.journal import Journal, LaneState, SweepState, load_plan
from orchestrator.results.parquet import decode_table, encode_table
from orchestrator.results.schema import CHUNK_TABLES, SCHEMAS
from orchestrator.results.sources import Source, Sources
from orchestrator.results.store import Chunk, Store, parse_chunk
from orchestrator.results.trials import SUMMARISED, summaries, trials_table
from orchestrator.results.versions import SCHEMA_VERSION, VERSION_KEY

T = TypeVar("T")

TRIALS_PATH = "dataset/trials/trials.parquet"
MANIFEST_PATH = "dataset/manifest.json"
#: What a row is of, by table; of rows alike in these the latest is kept.
_IDENTITY = {"steps": ("key", "step"), "layers": ("key", "step", "matrix"), "events": ("key", "step", "kind", "matrix")}


class _Made(NamedTuple):
    """What a dataset file says of itself."""

    rows: int
    columns: list[str]
    version: bytes | None
    #: None where it does not say.
    sources: Sources | None


@dataclass
class ConsolidateReport:
    """What a consolidation found and did."""

    #: Dataset files written.
    written: list[str] = field(default_factory=list)
    #: Dataset files that were right already.
    unchanged: list[str] = field(default_factory=list)
    #: Rows by table.
    rows: dict[str, int] = field(default_factory=dict)
    #: Damaged chunks of packs with missing rows, with why.
    damaged: list[Source] = field(default_factory=list)
    #: Damaged chunks of packs that have measured everything again since.
    made_good: list[Source] = field(default_factory=list)
    #: Lines of the journal that could not be understood.
    journal_lines_skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @property
    def packs_with_losses(self) -> list[str]:
        """Packs with missing rows, sorted."""
        return sorted({chunk.path.split("/")[1] for chunk in self.damaged})


def consolidate(store: Store, verify: bool = False) -> ConsolidateReport:
    """Bring the dataset of a sweep's folder up to date with its chunks, plan and journal.

    Of rows with the same identity the highest attempt's is kept, within an attempt the later chunk's. A damaged chunk
    is reported and left out, and looked at again the next time. A pack whose chunks are all gone keeps its rows.

    Args:
        store: the sweep's folder.
        verify: read every file of the dataset through, also one that nobody touched, and build the damaged ones again.

    Raises:
        FileNotFoundError: the folder has no plan.
        DamagedError: a dataset file is damaged, and its chunks are gone.
        NewerError: a later version of the program wrote chunks or dataset.
    """
    plan, journal = load_plan(store), Journal(store)
    state = SweepState.from_records(plan, journal.read())
    report = ConsolidateReport(journal_lines_skipped=journal.skipped)
    work = _Consolidation(store, report, verify)
    found: dict[tuple[str, str], dict[Chunk, int]] = defaultdict(dict)
    for path, size in store.sizes("packs").items():
        if chunk := parse_chunk(path):
            found[chunk.table, chunk.pack][chunk] = size
    ends: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for lane in state.lanes.values():
        if lane.audited is not None:
            message = f"{lane.audited['reason']}: {lane.audited['message']}"
            ends[lane.pack].append(_event_row(lane, {**lane.audited, "reason": "audited", "message": message}))
        if lane.ended is not None:
            ends[lane.pack].append(_event_row(lane, vars(lane)))
    for table in CHUNK_TABLES:
        packs = {pack for name, pack in found if name == table} | (set(ends) if table == "events" else set())
        present = {pack for _, pack in found}
        for pack in sorted(packs):
            if pack not in present and work.is_of_chunks(_dataset_path(table, pack)):
                continue
            work.update(table, pack, found.get((table, pack), {}), ends[pack] if table == "events" else [])
    work.write_if_changed(TRIALS_PATH, encode_table(trials_table(plan, state, work.lanes())))
    work.finish(state)
    return report


def mended(stores: Iterable[Store], read: Callable[[], T]) -> T:
    """What ``read`` returns; where a dataset file turns out to be damaged, it is built again from its chunks first.

    Raises:
        DamagedError: it cannot be.
    """
    try:
        return read()
    except DamagedError:
        for store in stores:
            consolidate(store, verify=True)
    return read()


class _Consolidation:
    """One run of `consolidate`: the store, and the report that grows."""

    def __init__(self, store: Store, report: ConsolidateReport, verify: bool) -> None:
        self._store, self._report = store, report
        self._there = store.facts("dataset")
        self._before = {} if verify else self._read_manifest()
        self._made: dict[str, _Made] = {}

    def is_of_chunks(self, path: str) -> bool:
        """Whether there is a file that holds rows of chunks, or may."""
        if not self._store.exists(path):
            return False
        try:
            sources = self._look(path).sources
        except DamagedError:
            return True
        return sources is None or bool(sources.chunks)

    def update(self, table: str, pack: str, listed: dict[Chunk, int], end_rows: list[dict[str, Any]]) -> None:
        """Build one dataset file, unless the one there was made from the same."""
        path = _dataset_path(table, pack)
        digest = hashlib.sha256(repr(end_rows).encode()).hexdigest() if end_rows else ""
        if self._is_current(table, path, listed, digest):
            self._report.unchanged.append(path)
            return
        self._build(table, pack, listed, end_rows, digest)

    def lanes(self) -> dict[str, dict[str, Any]]:
        """The `summaries` of all packs' steps; read from the rows only where a file does not hold them."""
        found = {}
        for path in self._store.list("dataset/steps"):
            if not path.endswith(".parquet"):
                continue
            sources = self._look(path).sources
            if sources is None or sources.lanes is None:
                wanted = pa.schema([SCHEMAS["steps"].field(name) for name in SUMMARISED])
                found.update(summaries(self._store.read_table(path, wanted)))
            else:
                found.update(sources.lanes)
        return found

    def write_if_changed(self, path: str, data: bytes) -> None:
        """Leave a file alone that has this content already."""
        if self._store.exists(path) and self._store.read_bytes(path) == data:
            self._report.unchanged.append(path)
        else:
            self._store.write_bytes(path, data)
            self._report.written.append(path)

    def finish(self, state: SweepState) -> None:
        """Write the manifest from what the dataset files say of themselves."""
        files = {}
        self._report.rows = dict.fromkeys(SCHEMAS, 0)
        for path, facts in self._store.facts("dataset").items():
            table = path.split("/")[1]
            if table not in SCHEMAS or not path.endswith(".parquet"):
                continue
            made = self._look(path)
            chunks = made.sources.chunks if made.sources else ()
            self._report.rows[table] += made.rows
            if bad := [chunk for chunk in chunks if chunk.damage]:
                lost = first_missing(self._store, _pack_of(path), state.lanes) is not None
                (self._report.damaged if lost else self._report.made_good).extend(bad)
            files[path] = {"rows": made.rows, **facts._asdict(), "chunks": [asdict(chunk) for chunk in chunks]}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "files": files,
            "damaged": [asdict(chunk) for chunk in self._report.damaged],
            "made_good": [asdict(chunk) for chunk in self._report.made_good],
            "journal_lines_skipped": self._report.journal_lines_skipped,
        }
        # Where everything else is as it should be, a folder that may only be read lacks nothing but new times.
        with nullcontext() if self._report.written else suppress(OSError):
            self.write_if_changed(MANIFEST_PATH, json.dumps(manifest).encode())

    def _read_manifest(self) -> dict[str, Any]:
        """What the manifest of the last time says of each file; empty where it cannot be understood."""
        try:
            files = json.loads(self._store.read_bytes(MANIFEST_PATH))["files"]
            return {path: (known["bytes"], known["modified"]) for path, known in files.items()}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _look(self, path: str) -> _Made:
        """What a dataset file says of itself; one that was touched since the last time is read through."""
        if path not in self._made:
            footer = self._store.read_footer(path)
            if self._before.get(path) != self._there.get(path):
                self._store.read_table(path, SCHEMAS[path.split("/")[1]])
            metadata = footer.metadata or {}
            sources = Sources.from_metadata(metadata)
            self._made[path] = _Made(footer.num_rows, footer.schema.names, metadata.get(VERSION_KEY), sources)
        return self._made[path]

    def _is_current(self, table: str, path: str, listed: dict[Chunk, int], ends: str) -> bool:
        try:
            made = self._look(path)
        except (FileNotFoundError, DamagedError):
            return False
        sources = made.sources
        return (
            sources is not None
            and made.version == SCHEMAS[table].metadata[VERSION_KEY]
            and made.columns == SCHEMAS[table].names
            and {chunk.path: chunk.bytes for chunk in sources.chunks} == {c.path: size for c, size in listed.items()}
            and sources.ends == ends
            and all(self._digest(chunk.path) == chunk.sha256 for chunk in sources.chunks if chunk.damage)
        )

    def _build(
        self, table: str, pack: str, listed: dict[Chunk, int], end_rows: list[dict[str, Any]], ends: str
    ) -> None:
        schema, parts, sources = SCHEMAS[table], [SCHEMAS[table].empty_table()], []
        for chunk in sorted(listed):
            rows, source = self._read_chunk(chunk, listed[chunk], schema)
            parts.append(rows)
            sources.append(source)
        if end_rows:
            parts.append(_missing_ends(pa.concat_tables(parts), end_rows))
        rows = _latest(pa.concat_tables(parts), _IDENTITY[table])
        lanes = summaries(rows.select(SUMMARISED)) if table == "steps" else None
        made_from = Sources(tuple(sources), ends, lanes)
        path = _dataset_path(table, pack)
        self._store.write_table(path, rows.replace_schema_metadata({**schema.metadata, **made_from.to_metadata()}))
        self._made[path] = _Made(rows.num_rows, schema.names, schema.metadata[VERSION_KEY], made_from)
        self._report.written.append(path)

    def _read_chunk(self, chunk: Chunk, size: int, schema: pa.Schema) -> tuple[pa.Table, Source]:
        sha256 = None
        try:
            data = self._store.read_bytes(chunk.path)
            sha256 = hashlib.sha256(data).hexdigest()
            return decode_table(chunk.path, data, schema), Source(chunk.path, size, sha256)
        except (OSError, DamagedError) as error:
            return schema.empty_table(), Source(chunk.path, size, sha256, damage=str(error))

    def _digest(self, path: str) -> str | None:
        try:
            return hashlib.sha256(self._store.read_bytes(path)).hexdigest()
        except OSError:
            return None


def _dataset_path(table: str, pack: str) -> str:
    return f"dataset/{table}/{pack}.parquet"


def _pack_of(path: str) -> str:
    return path.rsplit("/", 1)[1].removesuffix(".parquet")


def _latest(rows: pa.Table, identity: tuple[str, ...]) -> pa.Table:
    """The last of the rows alike in ``identity``, sorted by it."""
    numbered = rows.select(list(identity)).append_column("row", pa.array(np.arange(len(rows))))
    last = numbered.group_by(list(identity)).aggregate([("row", "max")])
    last = last.sort_by([(name, "ascending") for name in identity])
    return rows.take(last["row_max"]).combine_chunks()


def _missing_ends(events: pa.Table, end_rows: list[dict[str, Any]]) -> pa.Table:
    """The journal's lane ends that the trials' own events do not tell, as events."""
    told = set(zip(events["key"].to_pylist(), events["kind"].to_pylist(), strict=True))
    missing = [row for row in end_rows if (row["key"], row["kind"]) not in told]
    return pa.Table.from_pylist(missing, schema=events.schema)


def _event_row(lane: LaneState, decided: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": lane.key,
        "pack": lane.pack,
        "attempt": decided["attempt"],
        "step": decided["step"],
        "time": decided["ended"],
        "kind": decided["reason"],
        "value": decided["value"],
        "reference": decided["reference"],
        "threshold": decided["threshold"],
        "message": decided["message"],
    }
