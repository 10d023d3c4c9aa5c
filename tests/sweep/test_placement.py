"""What each pack asks for: numbers as they were given, or settled by the GPUs there are."""

import json
from pathlib import Path

import pytest

from orchestrator.plan import Pack, make_plan
from orchestrator.preflight import PreflightError
from orchestrator.space import Resources, load_space
from orchestrator.sweep import placement

CORPUS = {"corpus": "stdlib", "hash": "c0ffee", "tokens": 1000, "vocabulary": 256}
GIB = 2**30


@pytest.fixture
def packs(tmp_path: Path) -> tuple[Pack, ...]:
    (tmp_path / "x.yaml").write_text(json.dumps({"name": "x", "parameters": {"format": {"values": ["E4M3"]}}}))
    return make_plan(load_space(tmp_path / "x.yaml"), CORPUS).packs


@pytest.mark.parametrize(
    ("asked", "there", "memory", "is_cluster", "gpu"),
    [
        (0.0, {"CPU": 2, "GPU": 1}, 1, False, 0.0),
        (0.25, {"CPU": 2, "GPU": 1}, None, False, 0.25),
        (0.25, {"CPU": 2, "GPU": 1}, 80 * GIB, False, 0.25),
        (1.0, {"CPU": 2}, 80 * GIB, True, 1.0),
        ("auto", {"CPU": 2}, None, False, 0.0),
        ("auto", {"CPU": 2}, None, True, 0.0),
        ("auto", {"CPU": 2, "GPU": 1}, None, False, 1.0),
        ("auto", {"CPU": 2, "GPU": 8}, 80 * GIB, True, 0.125),
        ("auto", {"CPU": 2, "GPU": 8}, 2 * GIB, True, 1.0),
    ],
)
def test_a_share_of_a_gpu_is_settled(
    asked: float | str,
    there: dict[str, float],
    memory: int | None,
    is_cluster: bool,
    gpu: float,
    packs: tuple[Pack, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(placement, "smallest_device", lambda: memory)
    assert placement.settled(Resources(1.0, asked), packs, 256, is_cluster) == Resources(1.0, gpu)


@pytest.mark.parametrize(
    ("asked", "there", "memory", "message"),
    [
        (0.125, {"CPU": 2, "GPU": 1}, 2 * GIB, "resources.gpu: 0.125 of 2.1 GB is"),
        ("auto", {"CPU": 2, "GPU": 1}, GIB // 2, "takes about"),
        ("auto", {}, None, "cannot be settled while no node of the cluster has room"),
    ],
)
def test_what_cannot_be_settled_is_refused(
    asked: float | str,
    there: dict[str, float],
    memory: int | None,
    message: str,
    packs: tuple[Pack, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(placement, "smallest_device", lambda: memory)
    with pytest.raises(PreflightError, match=message):
        placement.settled(Resources(1.0, asked), packs, 256, True)
