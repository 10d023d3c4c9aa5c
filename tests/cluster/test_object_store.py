"""A sweep whose folder is in a bucket, on an S3-compatible server: interrupted, gone on with, read. No secret in it."""

import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pyarrow.fs as pafs
import pytest
from places import free_ports
from sweeps import PATIENCE, altgrad, environment

from orchestrator.results.journal import Journal
from orchestrator.results.queries import query
from orchestrator.results.store import Store

KEYS = {"AWS_ACCESS_KEY_ID": "canary-access-key", "AWS_SECRET_ACCESS_KEY": "canary-secret-key"}
CHOICE = ["format=[fp32,E4M3]", "storage=[master]", "exclude=[]"]
ENDED = "SELECT key FROM trials WHERE format IN ('fp32', 'E4M3') AND storage = 'master'"


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server of this machine."""

    filesystem: pafs.S3FileSystem
    #: What follows a path in an address.
    options: str

    def address(self, path: str) -> str:
        return f"s3://bucket/{path}?{self.options}"

    def store(self) -> Store:
        """The folder of the sweep."""
        return Store(self.filesystem, "bucket/runs/small", self.address("runs/small"))

    def files(self) -> dict[str, bytes]:
        """Everything that lies in it."""
        found = self.filesystem.get_file_info(pafs.FileSelector("bucket", recursive=True))
        paths = [info.path for info in found if info.type == pafs.FileType.File]
        return {path: self.filesystem.open_input_file(path).read() for path in paths}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A server, and a bucket on it."""
    folder = tmp_path_factory.mktemp("server")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            _wait_for(server, port, folder / "log")
            place = f"127.0.0.1:{port}"
            keys = dict(zip(("access_key", "secret_key"), KEYS.values(), strict=True))
            options = {"endpoint_override": place, "scheme": "http"}
            filesystem = pafs.S3FileSystem(**keys, **options, allow_bucket_creation=True)
            filesystem.create_dir("bucket")
            yield Bucket(filesystem, urlencode(options, safe=":"))
        finally:
            server.terminate()


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@dataclass(frozen=True)
class Sweep:
    """A sweep in a bucket, interrupted and gone on with."""

    uri: str
    home: Path
    env: dict[str, str]
    interrupted: subprocess.CompletedProcess[str]
    resumed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def sweep(bucket: Bucket, space: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The small sweep's controls and one cell, from a machine that has nothing of it but the search space."""
    home = tmp_path_factory.mktemp("home")
    env = environment(home) | KEYS
    command = [
        sys.executable,
        "-m",
        "orchestrator.cli",
        "sweep",
        str(space),
        *CHOICE,
        "--storage",
        bucket.address("runs"),
    ]
    with subprocess.Popen(
        command, cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while sum(record["event"] == "reported" for record in Journal(bucket.store()).read()) < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no reports"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)
    interrupted = subprocess.CompletedProcess(command, process.returncode, *said)
    (advice,) = [line for line in said[1].splitlines() if "go on with: " in line]
    program, *words = shlex.split(advice.partition("go on with: ")[2])
    assert program == "altgrad"
    return Sweep(words[-1], home, env, interrupted, altgrad(*words, cwd=home, env=env, timeout=PATIENCE))


def test_it_goes_on_where_it_was_interrupted(sweep: Sweep, bucket: Bucket) -> None:
    assert sweep.interrupted.returncode == 130, sweep.interrupted.stderr
    assert sweep.uri == bucket.address("runs/small")
    assert sweep.resumed.returncode == 0, sweep.resumed.stderr
    assert "Trials: 2 completed" in sweep.resumed.stdout
    records = Journal(bucket.store()).read()
    ended = [record["key"] for record in records if record["event"] == "lane_ended"]
    assert len(ended) == len(set(ended)) == 2
    assert {record["attempt"] for record in records if record["event"] == "reported"} == {1, 2}


@pytest.mark.parametrize("table", ["steps", "layers"])
def test_its_rows_are_those_of_a_sweep_on_a_disk(sweep: Sweep, bucket: Bucket, undisturbed: Path, table: str) -> None:
    sql = f"SELECT * EXCLUDE (pack, attempt) FROM {table} WHERE key IN ({ENDED}) ORDER BY ALL"
    rows = query(bucket.store(), sql).to_pylist()
    assert rows == query(Store.open(undisturbed), sql).to_pylist() != []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["consolidate"], "0 files written"),
        (["query", "SELECT count(*) AS n FROM trials"], "2"),
        (["resume"], "nothing is left to run"),
    ],
    ids=["consolidate", "query", "resume"],
)
def test_it_is_read_where_it_lies(sweep: Sweep, command: list[str], said: str) -> None:
    name, *rest = command
    done = altgrad(name, sweep.uri, *rest, cwd=sweep.home, env=sweep.env)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout + done.stderr


def test_no_secret_is_written_anywhere(sweep: Sweep, bucket: Bucket) -> None:
    written = bucket.files() | {str(path): path.read_bytes() for path in sweep.home.rglob("*") if path.is_file()}
    assert any(path.endswith("plan.json") for path in written)
    assert any("/ray/" in path for path in written)
    printed = "".join(run.stdout + run.stderr for run in (sweep.interrupted, sweep.resumed))
    for secret in KEYS.values():
        assert [path for path, content in written.items() if secret.encode() in content] == []
        assert secret not in printed


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket, space: Path, tmp_path: Path) -> None:
    address = bucket.address("runs").replace("//bucket", "//nowhere")
    refused = altgrad("sweep", space, "--storage", address, cwd=tmp_path, env=environment(tmp_path) | KEYS)
    assert refused.returncode == 4
    (line,) = refused.stderr.splitlines()
    assert "'nowhere'" in line
    assert "does not exist" in line
