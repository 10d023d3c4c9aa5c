"""What is missing once a chunk is damaged, and from which step on a pack has to train again."""

from typing import Any

import pytest
from synthetic_sweep import Sweep

from orchestrator.results.consolidate import consolidate
from orchestrator.results.holes import first_missing
from orchestrator.results.journal import SweepState
from orchestrator.results.store import ChunkWriter

#: Steps between two reports of the pack below.
REPORT = 5


class Measured:
    """One pack of two lanes, the second of which ends at step 10; a chunk of each table at every report."""

    def __init__(self, sweep: Sweep) -> None:
        self.store, self.journal = sweep.store, sweep.journal
        self.pack = sweep.add_pack(lanes=2)
        self._plan = sweep.plan
        self.first, self.second = (lane["key"] for lane in self.pack["lanes"])

    def attempt(self, number: int, begin: int, end: int) -> None:
        """An attempt that goes on from ``begin`` and reports for the last time at ``end``."""
        writer, pack = ChunkWriter(self.store, self.pack["pack"], number), self.pack["pack"]
        self.journal.append({"event": "pack_started", "pack": pack})
        for last in range(begin + REPORT, end + 1, REPORT):
            lanes = [self.first, self.second] if last <= 10 else [self.first]
            rows: list[tuple[str, int]] = [(key, step) for key in lanes for step in range(last - REPORT + 1, last + 1)]
            columns: dict[str, Any] = {"key": [key for key, _ in rows], "step": [step for _, step in rows]}
            writer.append("steps", columns)
            writer.append("layers", columns | {"matrix": ["w"] * len(rows)})
            writer.append("events", {"key": lanes, "step": [last] * len(lanes), "kind": ["rank_warning"] * len(lanes)})
            self.journal.append({"event": "reported", "pack": pack, "attempt": number, "step": last})
            if last == 10:
                self._end(self.second, 10)

    def finish(self) -> None:
        self._end(self.first, 20)

    def _end(self, key: str, step: int) -> None:
        self.journal.append(
            {"event": "lane_ended", "pack": self.pack["pack"], "key": key, "reason": "asha", "step": step}
        )

    def damage(self, attempt: int, table: str, report: int) -> None:
        path = f"packs/{self.pack['pack']}/attempt-{attempt}/{table}-{report:06d}.parquet"
        self.store.write_bytes(path, self.store.read_bytes(path)[:-30])

    def first_missing(self) -> int | None:
        state = SweepState.from_records(self._plan, self.journal.read())
        return first_missing(self.store, self.pack["pack"], state.lanes)


@pytest.fixture
def measured(sweep: Sweep) -> Measured:
    return Measured(sweep)


def test_a_sound_pack_misses_nothing(measured: Measured) -> None:
    assert measured.first_missing() is None
    measured.attempt(1, 0, 20)
    assert measured.first_missing() is None


@pytest.mark.parametrize("table", ["steps", "layers"])
@pytest.mark.parametrize(("report", "expected"), [(0, 1), (1, 6), (3, 16)])
def test_what_a_chunk_held_is_missing_from_its_first_step_on(
    table: str, report: int, expected: int, measured: Measured
) -> None:
    measured.attempt(1, 0, 20)
    measured.damage(1, table, report)
    assert measured.first_missing() == expected


def test_of_several_damaged_chunks_the_earliest_counts(measured: Measured) -> None:
    measured.attempt(1, 0, 20)
    measured.damage(1, "layers", 1)
    measured.damage(1, "steps", 2)
    assert measured.first_missing() == 6


@pytest.mark.parametrize("table", ["steps", "layers", "events"])
def test_rows_that_a_later_attempt_measured_again_are_not_missing(table: str, measured: Measured) -> None:
    measured.attempt(1, 0, 20)
    measured.damage(1, table, 2)
    measured.attempt(2, 0, 15)
    measured.attempt(3, 15, 20)
    assert measured.first_missing() is None


def test_what_lies_beyond_the_last_report_will_be_measured_again(measured: Measured) -> None:
    measured.attempt(1, 0, 20)
    measured.damage(1, "steps", 3)
    measured.attempt(2, 10, 15)
    assert measured.first_missing() is None


def test_what_events_are_lost_cannot_be_told_so_the_whole_attempt_is(measured: Measured) -> None:
    measured.attempt(1, 0, 10)
    measured.attempt(2, 10, 20)
    measured.damage(2, "events", 1)
    assert measured.first_missing() == 11
    measured.attempt(3, 5, 15)
    assert measured.first_missing() == 16, "the third has not come as far as the second"


def test_before_the_first_report_everything_may_be_lost(measured: Measured) -> None:
    ChunkWriter(measured.store, measured.pack["pack"], 1).append("steps", {"key": [measured.first], "step": [1]})
    measured.damage(1, "steps", 0)
    assert measured.first_missing() == 1


def test_consolidation_tells_what_is_lost_from_what_was_made_good(measured: Measured) -> None:
    measured.attempt(1, 0, 20)
    measured.finish()
    measured.damage(1, "steps", 1)
    report = consolidate(measured.store)
    assert report.packs_with_losses == [measured.pack["pack"]]
    assert not report.made_good
    measured.attempt(2, 0, 20)
    report = consolidate(measured.store)
    assert not report.damaged
    assert [chunk.path.rsplit("/", 1)[1] for chunk in report.made_good] == ["steps-000001.parquet"]
    assert report.rows["steps"] == 30
