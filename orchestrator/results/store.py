"""One folder on any filesystem that pyarrow knows, and the Parquet chunks that trials append to it.

A file appears whole or not at all, and a chunk is never changed once it is there.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from orchestrator.results import local
from orchestrator.results.parquet import decode_footer, decode_table, encode_table
from orchestrator.results.schema import CHUNK_TABLES, SCHEMAS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHUNK = re.compile(r"packs/([^/]+)/attempt-([1-9]\d*)/([a-z]+)-(\d{6,})\.parquet")
_ATTEMPT = re.compile(r"/attempt-([1-9]\d*)/")
#: Columns without which a row of a table means nothing; `ChunkWriter` insists on them.
_REQUIRED = {"steps": ("key", "step"), "layers": ("key", "step", "matrix"), "events": ("key", "step", "kind")}


def validate_name(name: str) -> str:
    """Return ``name`` if it may become the name of a folder.

    Raises:
        ValueError: it is empty, too long, or has characters that could lead out of its folder.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        rule = "1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit, and no '..'"
        raise ValueError(f"{name!r} is not a valid name; use {rule}")
    return name


class FileFacts(NamedTuple):
    """What a listing says of a file."""

    bytes: int
    #: Nanoseconds since 1970; None where the filesystem does not say.
    modified: int | None


class Store:
    """One folder. Every path is relative to it, with forward slashes, and cannot lead out of it.

    On a local disk a file is written beside its place, synced, and renamed; on an object store it is one put, which
    is just as atomic. Other remote filesystems may show a file while it grows; a reader then sees it as damaged.
    """

    def __init__(self, filesystem: pafs.FileSystem, root: str, uri: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._is_local = isinstance(filesystem, pafs.LocalFileSystem)
        #: Where this is: a local path or an address that `open` takes back.
        self.uri = uri

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @classmethod
    def open(cls, where: str | Path) -> "Store":
        """The folder at a local path or an address such as ``s3://bucket/runs/x``; it need not exist yet.

        Raises:
            ValueError: an address of an unknown kind, or one that carries a password.
        """
        if isinstance(where, Path) or "://" not in where:
            path = str(Path(os.path.expanduser(where)).absolute())  # which leaves a stranger's home alone
            return cls(pafs.LocalFileSystem(), path, path)
        if urlsplit(where).password:
            raise ValueError("an address must not carry a password, it would end up in logs; set it in the environment")
        filesystem, root = pafs.FileSystem.from_uri(_in_one_put(where))
        return cls(filesystem, root, root if isinstance(filesystem, pafs.LocalFileSystem) else where)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.parts[-1]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the folders that lead here, its own last."""
        return tuple(self._root.split("/"))

    def sub(self, name: str) -> "Store":
        """The folder ``name`` inside this one."""
        path = self._path(name)
        if self._is_local:
            return Store(self._fs, path, path)
        address = urlsplit(self.uri)
        uri = address._replace(path=f"{address.path.rstrip('/')}/{name}").geturl()
        return Store(self._fs, path, uri)

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        return self._fs.get_file_info(self._path(path)).type != pafs.FileType.NotFound

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""
        return self._fs.get_file_info(self._path(path)).type == pafs.FileType.Directory

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every file under the folder ``prefix``, by path, sorted; files still being written are left out."""
        return {path: facts.bytes for path, facts in self.facts(prefix).items()}

    def facts(self, prefix: str = "") -> dict[str, FileFacts]:
        """Size and time of every file under the folder ``prefix``, as `sizes` lists them."""
        base = self._path(prefix) if prefix else self._root
        found = self._fs.get_file_info(pafs.FileSelector(base, allow_not_found=True, recursive=True))
        skip = len(self._root) + 1 if self._root else 0
        files = {
            info.path[skip:]: FileFacts(info.size, info.mtime_ns) for info in found if info.type == pafs.FileType.File
        }
        return {path: files[path] for path in sorted(files) if not path.endswith(local.TEMPORARY_SUFFIX)}

    def list(self, prefix: str = "") -> list[str]:
        """Paths of every file under the folder ``prefix``, sorted; files still being written are left out."""
        return [*self.sizes(prefix)]

    def read_bytes(self, path: str, start: int = 0) -> bytes:
        """The content of a file from byte ``start`` on; nothing where it is shorter.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._fs.open_input_file(self._path(path)) as file:
            if start:
                file.seek(min(start, file.size()))
            return file.read()

    def write_bytes(self, path: str, data: bytes) -> None:
        """Make ``data`` the content of a file, atomically; folders on the way are created."""
        target = self._path(path)
        if self._is_local:
            local.write(Path(target), data)
            return
        # Out of Ctrl-C's reach, which falls on the main thread: to leave a stream half way is to close it, and what was
        # written until then, nothing as a rule, takes the place of the old content.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(bool).result()  # leaving the pool waits for a thread only once its start has been seen
            thread.submit(self._put, target, data).result()

    def _put(self, target: str, data: bytes) -> None:
        try:
            stream = self._fs.open_output_stream(target)
        except FileNotFoundError:
            self._fs.create_dir(str(PurePosixPath(target).parent), recursive=True)
            stream = self._fs.open_output_stream(target)
        with stream:
            stream.write(data)

    def append_line(self, path: str, line: bytes) -> None:
        """Append a line, synced; on a fresh line where an earlier writer died in the middle of one.

        Where a filesystem cannot append (object stores), the whole file is written again.
        """
        if self._is_local:
            local.append_line(Path(self._path(path)), line)
            return
        before = self.read_bytes(path) if self.exists(path) else b""
        torn = before[-1:] not in (b"", b"\n")
        self.write_bytes(path, before + b"\n" * torn + line + b"\n")

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens where there is none."""
        target = self._path(path)
        kind = self._fs.get_file_info(target).type
        if kind == pafs.FileType.Directory:
            self._fs.delete_dir(target)
        elif kind != pafs.FileType.NotFound:
            self._fs.delete_file(target)

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write a table as one Parquet file, atomically: zstd, split float bytes, a checksum on every page."""
        self.write_bytes(path, encode_table(table))

    def read_table(self, path: str, schema: pa.Schema) -> pa.Table:
        """Read a Parquet file as ``schema``: columns it lacks are null, columns it has besides are dropped.

        Raises:
            FileNotFoundError: there is none.
            DamagedError: it cannot be read back as it was written.
            NewerError: a later version of the program wrote it.
        """
        return decode_table(path, self.read_bytes(path), schema)

    def read_footer(self, path: str) -> pq.FileMetaData:
        """The footer of a Parquet file: its rows, columns and metadata, without its data.

        Raises:
            FileNotFoundError: there is none.
            DamagedError: it has no whole footer.
            NewerError: a later version of the program wrote it.
        """
        with self._fs.open_input_file(self._path(path)) as file:
            return decode_footer(path, file)

    def arrow_source(self, path: str) -> tuple[pafs.FileSystem, str]:
        """The filesystem and the path on it, for an Arrow dataset."""
        return self._fs, self._path(path)

    def _path(self, path: str) -> str:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in path:
            raise ValueError(f"{path!r} is not a path inside {self.uri}; use names joined by '/', without '.' or '..'")
        return f"{self._root}/{path}" if self._root else path


class Chunk(NamedTuple):
    """The place of one chunk; chunks of a pack sort into the order they were written in."""

    pack: str
    attempt: int
    sequence: int
    table: str
    path: str


def parse_chunk(path: str) -> Chunk | None:
    """What a path says about the chunk there; None where the path is not a chunk's."""
    match = _CHUNK.fullmatch(path)
    if match is None or match[3] not in CHUNK_TABLES:
        return None
    return Chunk(match[1], int(match[2]), int(match[4]), match[3], path)


def _in_one_put(address: str) -> str:
    """The address with S3 told to send a small file as one request, where it would start an upload in parts."""
    parts = urlsplit(address)
    if parts.scheme != "s3" or "allow_delayed_open" in parts.query:
        return address
    return parts._replace(query="&".join(filter(None, (parts.query, "allow_delayed_open=true")))).geturl()


def chunks(store: Store, pack: str, table: str) -> list[str]:
    """Paths of a pack's chunks of one table, in the order they were written in."""
    found = map(parse_chunk, store.list(f"packs/{validate_name(pack)}"))
    return [chunk.path for chunk in sorted(chunk for chunk in found if chunk and chunk.table == table)]


def attempts(store: Store, pack: str) -> list[int]:
    """Attempts of a pack that left any file."""
    folder = f"packs/{validate_name(pack)}"
    matches = (_ATTEMPT.match(path.removeprefix(folder)) for path in store.list(folder))
    return sorted({int(match[1]) for match in matches if match})


def next_attempt(store: Store, pack: str) -> int:
    """The number of the attempt that a pack makes next, from 1."""
    return max(attempts(store, pack), default=0) + 1


class ChunkWriter:
    """Appends the rows of one attempt of one pack, one immutable Parquet file a call."""

    def __init__(self, store: Store, pack: str, attempt: int) -> None:
        """Continue after the chunks that are there.

        Raises:
            ValueError: the pack has no valid name, or the attempt is below 1.
        """
        if attempt < 1:
            raise ValueError(f"attempts count from 1, got {attempt}")
        self._store, self._pack, self._attempt = store, validate_name(pack), attempt
        self._folder = f"packs/{pack}/attempt-{attempt}"
        self._next = dict.fromkeys(CHUNK_TABLES, 0)
        for chunk in filter(None, map(parse_chunk, store.list(self._folder))):
            self._next[chunk.table] = max(self._next[chunk.table], chunk.sequence + 1)

    def append(self, table: str, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> str | None:
        """Write rows, whole or not at all.

        Args:
            table: ``steps``, ``layers`` or ``events``.
            columns: equally long columns. NaN becomes null, a missing column is null; pack and attempt are filled in.

        Returns:
            The path of the chunk, or None where there are no rows: then nothing is written.

        Raises:
            ValueError: an unknown table or column, a value its column cannot hold exactly, unequal lengths.
        """
        if table not in CHUNK_TABLES:
            raise ValueError(f"unknown table {table!r}; known: {', '.join(CHUNK_TABLES)}")
        rows = _rows(table, columns, {"pack": self._pack, "attempt": self._attempt})
        if not rows.num_rows:
            return None
        path = f"{self._folder}/{table}-{self._next[table]:06d}.parquet"
        self._store.write_table(path, rows)
        self._next[table] += 1
        return path


def _rows(table: str, columns: Mapping[str, Sequence[Any] | np.ndarray], constants: Mapping[str, Any]) -> pa.Table:
    schema = SCHEMAS[table]
    if unknown := sorted(set(columns) - set(schema.names)):
        raise ValueError(f"{table} has no columns {', '.join(unknown)}; known: {', '.join(schema.names)}")
    if given := sorted(set(columns) & set(constants)):
        raise ValueError(f"the writer itself fills in {' and '.join(given)}")
    if missing := [name for name in _REQUIRED[table] if name not in columns]:
        raise ValueError(f"{table} rows need {', '.join(missing)}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of unequal length: {lengths}")
    count = lengths["key"]
    arrays = []
    for field in schema:
        if field.name in constants:
            arrays.append(pa.repeat(pa.scalar(constants[field.name], field.type), count))
        elif field.name in columns:
            arrays.append(_array(field, columns[field.name]))
        else:
            arrays.append(pa.nulls(count, field.type))
    for name in _REQUIRED[table]:
        if arrays[schema.get_field_index(name)].null_count:
            raise ValueError(f"{table}.{name} must not be null")
    return pa.table(arrays, schema=schema)


def _array(field: pa.Field, values: Sequence[Any] | np.ndarray) -> pa.Array:
    try:
        if pa.types.is_timestamp(field.type):
            return pa.array(values, type=field.type, from_pandas=True)
        found = pa.array(values, from_pandas=True)
        if pa.types.is_string(field.type) and not (pa.types.is_string(found.type) or pa.types.is_null(found.type)):
            raise TypeError(f"expected text, got {found.type}")
        if pa.types.is_floating(found.type):
            found = pc.if_else(pc.is_nan(found), None, found)
        # Counts must be whole; a measurement may lose digits on its way to float32.
        return found.cast(field.type, safe=not pa.types.is_floating(field.type))
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise ValueError(f"{field.name}: {error}") from error
