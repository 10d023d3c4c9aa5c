"""The `altgrad` command as a person runs it: in a process of its own, with a home of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.results.consolidate import consolidate
from orchestrator.results.queries import query as ask
from orchestrator.results.store import Store

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "search_spaces" / "smoke.yaml"


#: Seconds after which a command is taken to hang: many times what any takes, on a machine that is slow and full.
PATIENCE = 600


def environment(home: Path) -> dict[str, str]:
    """A clean environment: an empty home, no keys, no threads to fight over."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "RAY"))}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}


def altgrad(
    *arguments: object, cwd: Path, timeout: float = PATIENCE, env: Mapping[str, str] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with further variables in its environment."""
    command = [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**(env or environment(cwd)), **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def query(run: Path, sql: str) -> list[dict]:
    """Rows of a query, as ``altgrad query --format json`` has them."""
    store = Store.open(run)
    consolidate(store)
    return json.loads(json.dumps(ask(store, sql).to_pylist(), default=str))


def records(run: Path) -> list[dict]:
    """The whole lines of the journal as it stands."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def interrupt(
    arguments: Sequence[object], run: Path, signals: Sequence[signal.Signals], reports: int, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Start a command, and send it signals once the run has so many more reports."""
    before = sum(record["event"] == "reported" for record in records(run))
    command = [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=cwd, env=environment(cwd), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while sum(record["event"] == "reported" for record in records(run)) < before + reports:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no reports"
            time.sleep(0.1)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.4)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
