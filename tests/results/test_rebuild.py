"""A journal that lost lines, or all of it, is completed from the chunks: the sweep stands where it stood."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from synthetic_sweep import Sweep

from orchestrator.results.consolidate import consolidate
from orchestrator.results.journal import SweepState
from orchestrator.results.rebuild import missing_records
from orchestrator.results.store import ChunkWriter, Store

LAST = 40


class Worker:
    """One attempt of a pack, and its driver: it reports every ten steps, to its chunks and to the journal."""

    def __init__(self, sweep: Sweep, pack: dict[str, Any], attempt: int = 1, done: int = 0) -> None:
        self.sweep, self.pack, self.attempt, self.step = sweep, pack, attempt, done
        self.spared: set[str] = set()
        self.writer = ChunkWriter(sweep.store, pack["pack"], attempt)
        sweep.journal.append({"event": "pack_started", "pack": pack["pack"]})

    def report(
        self, losses: Mapping[str, float | None], ends: Mapping[str, str] | None = None, spared: Sequence[str] = ()
    ) -> None:
        """Ten more steps of the lanes with a loss here; some end by a decision of the pack, all at the last step.

        ``spared``: lanes that would end, and are audited.
        """
        ends, steps = ends or {}, range(self.step + 1, self.step + 11)
        self.step += 10
        at = {"key": [key for key in losses for _ in steps], "step": [*steps] * len(losses)}
        values = [losses[key] if step == self.step else None for key in losses for step in steps]
        training = [losses[key] if step == self.step else 4.0 for key in losses for step in steps]
        numbers = {"value": 1.5, "reference": 1.0, "threshold": None}
        for key, reason in ends.items():
            message = f"{reason} at {self.step}"
            row = {"key": key, "step": self.step, "kind": reason, "message": message, **numbers}
            self.writer.append("events", {name: [value] for name, value in row.items()})
        for key in spared:
            row = {"key": key, "step": self.step, "kind": "audited", "message": f"asha: {self.step}", **numbers}
            self.writer.append("events", {name: [value] for name, value in row.items()})
        self.spared |= set(spared)
        self.writer.append("layers", {**at, "matrix": ["wte"] * len(at["step"])})
        self.writer.append("steps", {**at, "loss": training, "val_loss": values})
        living = {key: loss for key, loss in losses.items() if key not in ends and loss is not None}
        counted = [loss for key, loss in living.items() if key not in self.spared]
        metrics = {"lanes": len(living)} | ({"val_loss": sum(counted) / len(counted)} if counted else {"lost": True})
        self.sweep.journal.append(
            {**self._of("reported"), "attempt": self.attempt, "step": self.step, "metrics": metrics}
        )
        for key in spared:
            audit = {"key": key, "reason": "asha", "step": self.step, "message": f"{self.step}", **numbers}
            self.sweep.journal.append({**self._of("lane_audited"), **audit})
        for key, reason in ends.items():
            self._end(key, reason, message=f"{reason} at {self.step}", **numbers)
        if self.step == LAST:
            for key in losses.keys() - ends.keys():
                self._end(key, "completed", message=f"all {LAST} steps")

    def stop(self, losses: Mapping[str, float]) -> None:
        """The scheduler stops the pack on its last report: the driver alone knows."""
        for key in losses:
            self._end(key, "asha", message="4 is above 3", value=4.0, reference=3.0, threshold=None)

    def _of(self, event: str) -> dict[str, Any]:
        return {"event": event, "pack": self.pack["pack"]}

    def _end(self, key: str, reason: str, **more: Any) -> None:
        self.sweep.journal.append({**self._of("lane_ended"), "key": key, "reason": reason, "step": self.step, **more})


def standing(sweep: Sweep, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that a resumed sweep, its rungs and its results take from a journal."""
    state = SweepState.from_records(sweep.plan, records)
    lanes = {
        key: (lane.status, lane.reason, lane.step, lane.message, lane.value, lane.reference, lane.attempt)
        + ((lane.audited["reason"], lane.audited["step"]) if lane.audited else ())
        for key, lane in state.lanes.items()
        if lane.status == "finished"
    }
    reports = {
        (record["pack"], record["attempt"], record["step"]): record["metrics"]
        for record in records
        if record["event"] == "reported" and record["pack"] in state.unfinished
    }
    return {"lanes": lanes, "reports": reports, "unfinished": state.unfinished, "attempts": state.attempts}


def completed(sweep: Sweep, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, and those that are missing, as the journal would give them back."""
    time = {"time": "2026-01-01T00:00:00.000"}
    return records + [{**time, **record} for record in missing_records(sweep.store, sweep.plan, records)]


@pytest.fixture
def told(sweep: Sweep) -> Sweep:
    """A pack that came to its end in two attempts, one that was stopped, one under way, and one that waits."""
    pack, stopped, running, _ = (sweep.add_pack(3, steps=LAST) for _ in range(4))
    a, b, c = (lane["key"] for lane in pack["lanes"])
    worker = Worker(sweep, pack)
    worker.report({a: 3.0, b: 4.0, c: 5.0})
    worker.report({a: 2.5, b: None, c: 4.5}, {b: "diverged"})
    worker.report({a: 2.375, c: 4.375})
    worker = Worker(sweep, pack, attempt=2, done=20)
    worker.report({a: 2.375, c: 4.375}, {c: "rank_collapse"})
    worker.report({a: 2.25})
    losses = {lane["key"]: 4.0 for lane in stopped["lanes"]}
    worker = Worker(sweep, stopped)
    worker.report(losses)
    worker.report(losses)
    worker.stop(losses)
    Worker(sweep, running).report({lane["key"]: 3.5 for lane in running["lanes"]})
    consolidate(sweep.store)
    return sweep


def test_a_whole_journal_lacks_nothing(told: Sweep) -> None:
    assert missing_records(told.store, told.plan, told.journal.read()) == []


def test_wherever_a_journal_was_cut_off_the_sweep_stands_where_it_stood(told: Sweep) -> None:
    records = told.journal.read()
    whole = standing(told, records)
    assert len(whole["lanes"]) == 6
    assert len(whole["unfinished"]) == 2
    for kept in range(len(records)):
        assert standing(told, completed(told, records[:kept])) == whole, kept


def test_whichever_single_line_was_lost_the_sweep_stands_where_it_stood(told: Sweep) -> None:
    records = told.journal.read()
    whole = standing(told, records)
    for lost, record in enumerate(records):
        if record["event"] != "pack_started":  # how many attempts there were shows in the folders of the last ones
            assert standing(told, completed(told, records[:lost] + records[lost + 1 :])) == whole, record


def test_a_lost_journal_is_written_again_with_every_report(told: Sweep) -> None:
    """Those of packs that ended fill the rungs."""

    def reports(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = [{key: record[key] for key in record if key != "time"} for record in records]
        return sorted((record for record in found if record["event"] == "reported"), key=str)

    assert reports(completed(told, [])) == reports(told.journal.read())


def test_what_is_written_again_is_not_missing_any_more(told: Sweep) -> None:
    found = completed(told, [])
    assert missing_records(told.store, told.plan, found) == []


def test_without_the_dataset_a_stop_of_the_scheduler_is_to_be_decided_again(told: Sweep) -> None:
    told.store.delete("dataset")
    found = standing(told, completed(told, []))
    assert found["unfinished"] == [pack["pack"] for pack in told.plan["packs"][1:]]


def test_what_an_older_attempt_came_to_holds_no_more_where_a_newer_one_has_rows(sweep: Sweep) -> None:
    pack = sweep.add_pack(1, steps=LAST)
    key = pack["lanes"][0]["key"]
    worker = Worker(sweep, pack)
    worker.report({key: 3.0})
    worker.report({key: 2.9}, {key: "rank_collapse"})
    Worker(sweep, pack, attempt=2, done=10).report({key: 2.9})
    assert standing(sweep, completed(sweep, []))["unfinished"] == [pack["pack"]]


def cut(store: Store, path: str) -> None:
    store.write_bytes(path, store.read_bytes(path)[:-9])


def lose(store: Store, path: str) -> None:
    store.delete(path)


@pytest.mark.parametrize("table", ["steps", "layers"])
@pytest.mark.parametrize("damage", [cut, lose])
def test_a_lane_whose_last_rows_are_not_all_there_has_not_completed(sweep: Sweep, table: str, damage: Any) -> None:
    pack = sweep.add_pack(1, steps=LAST)
    worker = Worker(sweep, pack)
    for _ in range(4):
        worker.report({pack["lanes"][0]["key"]: 3.0})
    damage(sweep.store, f"packs/{pack['pack']}/attempt-1/{table}-000003.parquet")
    assert standing(sweep, completed(sweep, []))["unfinished"] == [pack["pack"]]


def test_a_lane_whose_last_loss_is_no_number_has_not_completed(sweep: Sweep) -> None:
    """Its worker died before it could say that it diverged."""
    pack = sweep.add_pack(1, steps=10)
    Worker(sweep, pack).report({pack["lanes"][0]["key"]: None})
    assert standing(sweep, completed(sweep, []))["unfinished"] == [pack["pack"]]


def test_a_report_in_which_the_last_lane_was_lost_is_told_as_such(sweep: Sweep) -> None:
    """Else what it had measured before would go on counting on the rungs."""
    pack = sweep.add_pack(1, steps=LAST)
    key = pack["lanes"][0]["key"]
    worker = Worker(sweep, pack)
    worker.report({key: 3.0})
    worker.report({key: None}, {key: "diverged"})
    reports = [record for record in completed(sweep, []) if record["event"] == "reported"]
    assert [record["metrics"] for record in reports] == [{"lanes": 1, "val_loss": 3.0}, {"lanes": 0, "lost": True}]


def test_audits_are_told_again_and_count_in_no_mean(sweep: Sweep) -> None:
    pack = sweep.add_pack(2, steps=LAST)
    a, b = (lane["key"] for lane in pack["lanes"])
    worker = Worker(sweep, pack)
    worker.report({a: 2.0, b: 4.0})
    for spared in ([b], [], []):
        worker.report({a: 2.0, b: 4.0}, spared=spared)
    whole = standing(sweep, sweep.journal.read())
    assert whole["lanes"][b][-2:] == ("asha", 20)
    found = completed(sweep, [])
    assert standing(sweep, found) == whole
    means = [record["metrics"]["val_loss"] for record in found if record["event"] == "reported"]
    assert means == [3.0, 2.0, 2.0, 2.0]


def test_what_was_decided_at_a_report_that_was_cut_off_has_not_happened(sweep: Sweep) -> None:
    pack = sweep.add_pack(1, steps=LAST)
    key = pack["lanes"][0]["key"]
    worker = Worker(sweep, pack)
    worker.report({key: 3.0})
    worker.report({key: 3.0}, {key: "rank_collapse"})
    sweep.store.delete(f"packs/{pack['pack']}/attempt-1/steps-000001.parquet")
    found = completed(sweep, [])
    assert [record["step"] for record in found if record["event"] == "reported"] == [10]
    assert standing(sweep, found)["unfinished"] == [pack["pack"]]
