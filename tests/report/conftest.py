"""One folder of a small study, read once."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest
from report.reported_sweep import Reported

from orchestrator.results.consolidate import consolidate
from orchestrator.results.report.run import ReportedRun, read_run
from orchestrator.results.report.writing import Report, report
from orchestrator.results.store import Store


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The folder, consolidated."""
    store = Store.open(tmp_path_factory.mktemp("runs") / "study")
    Reported(store)
    consolidate(store)
    return store


@pytest.fixture
def store() -> Store:
    """An empty folder in memory."""
    return Store(pafs._MockFileSystem(), "bucket/run", "mock://bucket/run")


@pytest.fixture(scope="session")
def run(study: Store) -> ReportedRun:
    return read_run("study", study)


@pytest.fixture(scope="session")
def made(study: Store) -> Report:
    return report([study])


@pytest.fixture(scope="session")
def folder(study: Store) -> Path:
    return Path(study.uri)
