"""The control's ranks as other packs read them: means over replicates, as far as the control has come."""

from pathlib import Path

import pytest

from orchestrator.results.store import ChunkWriter, Store
from orchestrator.sweep.control import ControlRanks

#: Setting of each of the control's lanes.
SETTINGS = {"a1": "lr=0.001", "a2": "lr=0.001", "b1": "lr=0.01", "b2": "lr=0.01"}
LOW, HIGH = "lr=0.001", "lr=0.01"


class Control:
    """A control pack that is written chunk by chunk, and its reader."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder)
        self.ranks = ControlRanks(self.store, "p000", SETTINGS)

    def write(self, step: int, ranks: dict[str, float | None], attempt: int = 1, matrix: str = "wte") -> Path:
        path = ChunkWriter(self.store, "p000", attempt).append(
            "layers",
            {
                "key": list(ranks),
                "step": [step] * len(ranks),
                "matrix": [matrix] * len(ranks),
                "effective_rank": list(ranks.values()),
            },
        )
        assert path is not None
        return Path(self.store.uri, path)


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(tmp_path)


def test_nothing_is_known_of_a_control_that_has_not_begun(control: Control) -> None:
    assert control.ranks.at(LOW, 100) is None


def test_a_rank_is_the_mean_over_the_replicates_of_its_own_setting(control: Control) -> None:
    control.write(100, {"a1": 10.0, "a2": 20.0, "b1": 3.0, "b2": 5.0})
    control.write(100, {"a1": 1.0, "a2": 2.0}, matrix="lm_head")
    assert control.ranks.at(LOW, 100) == {"wte": 15.0, "lm_head": 1.5}
    assert control.ranks.at(HIGH, 100) == {"wte": 4.0}


def test_chunks_written_later_are_found(control: Control) -> None:
    control.write(100, {"a1": 10.0})
    assert control.ranks.at(LOW, 200) is None
    control.write(200, {"a1": 8.0})
    assert control.ranks.at(LOW, 200) == {"wte": 8.0}


def test_steps_between_rank_checks_and_lanes_without_a_rank_do_not_count(control: Control) -> None:
    control.write(100, {"a1": 10.0, "a2": None, "b1": None})
    assert control.ranks.at(LOW, 100) == {"wte": 10.0}
    assert control.ranks.at(HIGH, 100) is None


def test_a_retried_control_replaces_what_it_measured_before(control: Control) -> None:
    control.write(100, {"a1": 10.0, "a2": 20.0})
    control.write(100, {"a1": 12.0, "a2": 20.0}, attempt=2)
    assert control.ranks.at(LOW, 100) == {"wte": 16.0}


def test_a_chunk_that_is_not_whole_yet_is_read_when_it_is(control: Control) -> None:
    path = control.write(100, {"a1": 10.0})
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert control.ranks.at(LOW, 100) is None
    path.write_bytes(whole)
    assert control.ranks.at(LOW, 100) == {"wte": 10.0}


def test_ranks_that_are_lost_are_told_from_those_that_are_still_to_come(control: Control) -> None:
    path = control.write(100, {"a1": 10.0, "b1": 3.0})
    path.write_bytes(b"damaged")
    control.write(200, {"a1": 8.0})
    assert control.ranks.at(LOW, 100) == {}
    assert control.ranks.at(HIGH, 100) is None, "this setting is not known to be past it"
    assert control.ranks.at(LOW, 300) is None
