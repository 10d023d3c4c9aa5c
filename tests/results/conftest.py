"""Folders on a local disk and elsewhere, and the synthetic sweep in them."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest
from synthetic_sweep import Sweep

from orchestrator.results.store import Store


def other_filesystem(kind: str, folder: Path) -> Store:
    if kind == "mock":
        return Store(pafs._MockFileSystem(), "bucket/run", "mock://bucket/run")
    return Store(pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), "run", "subtree://run")


@pytest.fixture(params=["local", "mock", "subtree"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty folder, on a local disk and on two filesystems that are not local."""
    if request.param == "local":
        return Store.open(tmp_path / "run")
    return other_filesystem(request.param, tmp_path)


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "run")


@pytest.fixture
def sweep(local_store: Store) -> Sweep:
    return Sweep(local_store)


@pytest.fixture
def any_sweep(store: Store) -> Sweep:
    return Sweep(store)
