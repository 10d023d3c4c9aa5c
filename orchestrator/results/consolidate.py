"""Chunks to dataset: one Parquet file a pack and table, without duplicates, rebuilt only where its chunks changed.

Each dataset file carries in its own metadata what it was made from, so that nothing else has to be believed. It is
safe to run at any time, also while the sweep runs, and as often as one likes.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.results.holes import first_missing
from orchestrator.results.journal import Journal, LaneState, SweepState, load_plan
from orchestrator.results.parquet import DamagedError, decode_table, encode_table
from orchestrator.results.schema import CHUNK_TABLES, SCHEMA_VERSION, SCHEMAS
from orchestrator.results.store import Chunk, Store, parse_chunk
from orchestrator.results.trials import trials_table

TRIALS_PATH = "dataset/trials/trials.parquet"
MANIFEST_PATH = "dataset/manifest.json"
#: Key of a dataset file's metadata that holds its `_Sources` as JSON.
_SOURCES = b"altgrad_sources"
#: What a row is of, by table; of rows alike in these the latest is kept.
_IDENTITY = {"steps": ("key", "step"), "layers": ("key", "step", "matrix"), "events": ("key", "step", "kind", "matrix")}


@dataclass(frozen=True)
class Source:
    """A chunk that a dataset file was made from."""

    path: str
    bytes: int
    #: Of its content; None where it could not be read at all.
    sha256: str | None
    #: Why its rows are missing; None where they are there.
    damage: str | None = None


@dataclass(frozen=True)
class _Sources:
    """Everything that decides the content of a dataset file."""

    chunks: tuple[Source, ...] = ()
    #: Digest of the journal's lane ends that became events.
    ends: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "_Sources":
        values = json.loads(text)
        return cls(tuple(Source(**chunk) for chunk in values["chunks"]), values["ends"], values["schema_version"])


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


def consolidate(store: Store) -> ConsolidateReport:
    """Bring the dataset of a sweep's folder up to date with its chunks, plan and journal.

    Of rows with the same identity the highest attempt's is kept, within an attempt the later chunk's. A damaged chunk
    is reported and left out, and looked at again the next time. A pack whose chunks are all gone keeps its rows.

    Raises:
        FileNotFoundError: the folder has no plan.
    """
    plan, journal = load_plan(store), Journal(store)
    state = SweepState.from_records(plan, journal.read())
    report = ConsolidateReport(journal_lines_skipped=journal.skipped)
    work = _Consolidation(store, report)
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
            if pack not in present and store.exists(_dataset_path(table, pack)):
                continue
            work.update(table, pack, found.get((table, pack), {}), ends[pack] if table == "events" else [])
    steps = work.read_steps(found)
    work.write_if_changed(TRIALS_PATH, encode_table(trials_table(plan, state, steps)))
    work.finish(state)
    return report


class _Consolidation:
    """One run of `consolidate`: the store, and the report that grows."""

    def __init__(self, store: Store, report: ConsolidateReport) -> None:
        self._store, self._report = store, report

    def update(self, table: str, pack: str, listed: dict[Chunk, int], end_rows: list[dict[str, Any]]) -> None:
        """Build one dataset file, unless the one there was made from the same."""
        path = _dataset_path(table, pack)
        digest = hashlib.sha256(repr(end_rows).encode()).hexdigest() if end_rows else ""
        if self._is_current(table, path, listed, digest):
            self._report.unchanged.append(path)
            return
        self._build(table, pack, listed, end_rows, digest)

    def read_steps(self, found: dict[tuple[str, str], dict[Chunk, int]]) -> pa.Table:
        """The steps of all packs as consolidated; a dataset file that went bad is built again."""
        wanted = pa.schema([SCHEMAS["steps"].field(name) for name in ("key", "step", "loss", "val_loss")])
        tables = [wanted.empty_table()]
        for path in self._store.list("dataset/steps"):
            try:
                tables.append(self._store.read_table(path, wanted))
            except DamagedError:
                pack = _pack_of(path)
                if ("steps", pack) not in found:
                    raise
                self._build("steps", pack, found["steps", pack], [], "")
                tables.append(self._store.read_table(path, wanted))
        return pa.concat_tables(tables)

    def write_if_changed(self, path: str, data: bytes) -> None:
        """Leave a file alone that has this content already."""
        if self._store.exists(path) and self._store.read_bytes(path) == data:
            self._report.unchanged.append(path)
        else:
            self._store.write_bytes(path, data)
            self._note_written(path)

    def finish(self, state: SweepState) -> None:
        """Write the manifest from what the dataset files say of themselves."""
        files = {}
        self._report.rows = dict.fromkeys(SCHEMAS, 0)
        for path, size in self._store.sizes("dataset").items():
            table = path.split("/")[1]
            if table not in SCHEMAS or not path.endswith(".parquet"):
                continue
            footer = self._store.read_footer(path)
            chunks = _Sources.from_json((footer.metadata or {}).get(_SOURCES, _Sources().to_json())).chunks
            self._report.rows[table] += footer.num_rows
            if bad := [chunk for chunk in chunks if chunk.damage]:
                lost = first_missing(self._store, _pack_of(path), state.lanes) is not None
                (self._report.damaged if lost else self._report.made_good).extend(bad)
            files[path] = {"rows": footer.num_rows, "bytes": size, "chunks": [asdict(chunk) for chunk in chunks]}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "files": files,
            "damaged": [asdict(chunk) for chunk in self._report.damaged],
            "made_good": [asdict(chunk) for chunk in self._report.made_good],
            "journal_lines_skipped": self._report.journal_lines_skipped,
        }
        self.write_if_changed(MANIFEST_PATH, json.dumps(manifest, indent=1).encode())

    def _is_current(self, table: str, path: str, listed: dict[Chunk, int], ends: str) -> bool:
        try:
            footer = self._store.read_footer(path)
            sources = _Sources.from_json((footer.metadata or {})[_SOURCES])
        except (FileNotFoundError, DamagedError, KeyError, ValueError, TypeError):
            return False
        return (
            sources.schema_version == SCHEMA_VERSION
            and footer.schema.names == SCHEMAS[table].names
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
        made_from = _Sources(tuple(sources), ends).to_json()
        path = _dataset_path(table, pack)
        self._store.write_table(path, rows.replace_schema_metadata({**schema.metadata, _SOURCES: made_from}))
        self._note_written(path)

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

    def _note_written(self, path: str) -> None:
        if path in self._report.unchanged:
            self._report.unchanged.remove(path)
        self._report.written.append(path)


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
