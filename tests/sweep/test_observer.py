"""What the driver writes into the journal, and what the journal then says, over failures, retries and resumes."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from small_plan import small_plan, tune_trial

from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.store import Store
from orchestrator.sweep.observer import SweepObserver
from orchestrator.sweep.progress import Progress
from orchestrator.sweep.retries import Action
from orchestrator.sweep.stopping import Decision


class Driver:
    """One run of a sweep's driver: an observer on a journal, and packs that report to it."""

    def __init__(self, folder: Path) -> None:
        self.plan = small_plan(folder)
        self.journal = Journal(Store.open(folder))
        self.error_file = folder / "error.txt"
        self.said: list[str] = []
        self.journal.append({"event": "sweep_started", "pid": 1, "host": "here"})
        self.packs = [pack.pack for pack in self.plan.packs]
        self.keys = {pack.pack: [lane.key for lane in pack.lanes] for pack in self.plan.packs}
        state = self.state()
        self.progress = Progress(self.plan, {})
        self.progress.echo = self.said.append
        self.observer = SweepObserver(state, self.journal, self.progress, max_failures=1, max_consecutive_failures=3)

    def state(self) -> SweepState:
        return SweepState.from_records(self.plan.to_dict(), self.journal.read())

    def start(self, pack: str) -> None:
        self.observer.on_trial_start(0, [], tune_trial(pack))

    def report(self, pack: str, step: int, alive: list[str], ended: dict[str, tuple[str, int]] | None = None) -> None:
        ends = [
            {"key": key, "reason": reason, "step": at, "message": f"{reason} at {at}"}
            for key, (reason, at) in (ended or {}).items()
        ]
        result: dict[str, Any] = {"step": step, "attempt": 1, "seconds": 1.0, "resumed_at": 0, "warnings": 0}
        result |= {"lanes": len(alive), "alive": alive, "ended": ends, "damaged": []}
        result |= {"val_loss": 3.0} if alive else {}
        self.observer.on_trial_result(0, [], tune_trial(pack), result)

    def fail(self, pack: str, text: str | None) -> Action:
        """An attempt fails with a text that Tune wrote down; None where it wrote none."""
        self.error_file.unlink(missing_ok=True)
        if text is not None:
            self.error_file.write_text(text)
        return self.observer.attempt_failed(tune_trial(pack, self.error_file))

    def ends(self) -> list[tuple[str, str, int]]:
        """Key, reason and step of every end in the journal."""
        return [
            (record["key"], record["reason"], record["step"])
            for record in self.journal.read()
            if record["event"] == "lane_ended"
        ]


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def test_a_report_is_kept_with_its_numbers(driver: Driver) -> None:
    pack = driver.packs[0]
    driver.start(pack)
    driver.report(pack, 10, driver.keys[pack])
    *_, started, reported = driver.journal.read()
    assert (started["event"], started["pack"]) == ("pack_started", pack)
    assert reported["metrics"] == {"val_loss": 3.0, "warnings": 0, "lanes": 4}
    assert (reported["step"], reported["attempt"], reported["seconds"]) == (10, 1, 1.0)


def test_a_result_of_tune_itself_is_passed_over(driver: Driver) -> None:
    before = driver.journal.read()
    driver.observer.on_trial_result(0, [], tune_trial(driver.packs[0]), {"done": True})
    assert driver.journal.read() == before


def test_a_pack_that_completes_ends_every_lane_once(driver: Driver) -> None:
    pack = driver.packs[1]
    driver.start(pack)
    driver.report(pack, 80, [], dict.fromkeys(driver.keys[pack], ("completed", 80)))
    driver.observer.on_trial_complete(0, [], tune_trial(pack))
    assert driver.ends() == [(key, "completed", 80) for key in driver.keys[pack]]
    assert pack not in driver.observer.unfinished
    assert len(driver.said) == 4


def test_a_pack_repeats_its_ends_and_they_are_recorded_once(driver: Driver) -> None:
    pack = driver.packs[1]
    lost, *others = driver.keys[pack]
    for step in (10, 20, 30):
        driver.report(pack, step, others, {lost: ("diverged", 10)})
    assert driver.ends() == [(lost, "diverged", 10)]
    assert driver.said[0].startswith("1/12  diverged")
    assert len(driver.said) == 1


def test_a_stop_ends_the_lanes_that_live_and_no_other(driver: Driver) -> None:
    """One report holds a lane's own end and brings the scheduler's stop of the whole pack."""
    pack = driver.packs[1]
    lost, *others = driver.keys[pack]
    driver.observer.stopped(pack, Decision("asha", 20, 4.0, 3.0, None, "4 is above 3"))
    driver.report(pack, 20, others, {lost: ("diverged", 20)})
    assert driver.ends() == [(lost, "diverged", 20)] + [(key, "asha", 20) for key in others]
    last = driver.journal.read()[-1]
    assert (last["value"], last["reference"], last["message"]) == (4.0, 3.0, "4 is above 3")
    assert driver.state().lanes[lost].reason == "diverged"


def test_an_audited_pack_is_recorded_once_and_its_lanes_live_on(driver: Driver, tmp_path: Path) -> None:
    pack = driver.packs[1]
    driver.start(pack)
    driver.observer.stopped(pack, Decision("asha", 20, 4.0, 3.0, None, "4 is above 3", audited=True))
    for step in (20, 40):
        driver.report(pack, step, driver.keys[pack])
    resumed = Driver(tmp_path)
    resumed.observer.stopped(pack, Decision("asha", 20, 4.0, 3.0, None, "4 is above 3", audited=True))
    resumed.report(pack, 80, [], dict.fromkeys(driver.keys[pack], ("completed", 80)))
    audits = [record for record in driver.journal.read() if record["event"] == "lane_audited"]
    assert [(audit["key"], audit["step"], audit["value"]) for audit in audits] == [
        (key, 20, 4.0) for key in driver.keys[pack]
    ]
    assert driver.ends() == [(key, "completed", 80) for key in driver.keys[pack]]
    for lane in (driver.state().lanes[key] for key in driver.keys[pack]):
        assert lane.audited is not None
        assert (lane.audited["reason"], lane.audited["step"], lane.reason) == ("asha", 20, "completed")


def test_a_lane_that_its_pack_audited_is_recorded_once_beside_its_end(driver: Driver) -> None:
    pack = driver.packs[1]
    spared, *others = driver.keys[pack]
    audit = {"key": spared, "reason": "stalled", "step": 20, "message": "stands still", "audited": True}
    for step, ended in (
        (20, []),
        (40, []),
        (80, [{"key": spared, "reason": "diverged", "step": 80, "message": "nan"}]),
    ):
        result = {
            "step": step,
            "attempt": 1,
            "seconds": 1.0,
            "resumed_at": 0,
            "warnings": 0,
            "lanes": 4,
            "val_loss": 3.0,
            "damaged": [],
        }
        alive = driver.keys[pack] if not ended else others
        driver.observer.on_trial_result(0, [], tune_trial(pack), result | {"alive": alive, "ended": [audit, *ended]})
    assert [record["event"] for record in driver.journal.read() if record.get("key") == spared] == [
        "lane_audited",
        "lane_ended",
    ]
    assert driver.ends() == [(spared, "diverged", 80)]


def test_a_report_whose_lanes_have_all_ended_finishes_the_pack(driver: Driver) -> None:
    pack = driver.packs[1]
    driver.report(pack, 20, [], dict.fromkeys(driver.keys[pack], ("stalled", 20)))
    assert pack not in driver.observer.unfinished
    assert pack not in driver.state().unfinished


def test_a_lane_that_ends_again_after_a_retry_is_not_recorded_again(driver: Driver) -> None:
    pack = driver.packs[1]
    lost, *others = driver.keys[pack]
    driver.start(pack)
    driver.report(pack, 20, others, {lost: ("diverged", 20)})
    driver.fail(pack, "The actor died.")
    driver.start(pack)
    driver.report(pack, 10, driver.keys[pack])
    driver.report(pack, 20, others, {lost: ("diverged", 20)})
    assert driver.ends() == [(lost, "diverged", 20)]


def test_a_lane_that_comes_to_another_end_after_a_retry_has_the_later_one(driver: Driver) -> None:
    """Its rows are those of the later attempt, so its end must be too, whether its own or the whole pack's."""
    pack = driver.packs[1]
    own, stopped, *others = driver.keys[pack]
    driver.report(pack, 20, others, {own: ("rank_collapse", 20), stopped: ("rank_collapse", 20)})
    driver.fail(pack, "The actor died.")
    driver.start(pack)
    driver.report(pack, 20, driver.keys[pack])
    driver.observer.stopped(pack, Decision("asha", 40, 4.0, 3.0, None, ""))
    driver.report(pack, 40, [stopped, *others], {own: ("stalled", 40)})
    lanes = driver.state().lanes
    assert (lanes[own].reason, lanes[own].step) == ("stalled", 40)
    assert (lanes[stopped].reason, lanes[stopped].step) == ("asha", 40)


def test_an_end_that_the_journal_lost_is_recorded_when_the_pack_tells_it_again(driver: Driver, tmp_path: Path) -> None:
    """The lane is in no checkpoint any more, so no attempt will come to its end again."""
    pack = driver.packs[1]
    lost, *others = driver.keys[pack]
    driver.report(pack, 10, others, {lost: ("diverged", 10)})
    file = tmp_path / "journal.jsonl"
    lines = [line for line in file.read_text().splitlines() if "lane_ended" not in line]
    file.write_text("\n".join(lines) + "\n")
    resumed = Driver(tmp_path)
    assert pack in resumed.observer.unfinished
    resumed.report(pack, 80, [], {lost: ("diverged", 10)} | dict.fromkeys(others, ("completed", 80)))
    assert pack not in resumed.state().unfinished
    assert resumed.state().lanes[lost].reason == "diverged"


def test_a_resumed_driver_does_not_repeat_what_the_journal_holds(driver: Driver, tmp_path: Path) -> None:
    pack = driver.packs[1]
    lost, *others = driver.keys[pack]
    driver.report(pack, 10, others, {lost: ("diverged", 10)})
    resumed = Driver(tmp_path)
    resumed.report(pack, 20, others, {lost: ("diverged", 10)})
    assert resumed.ends() == [(lost, "diverged", 10)]
    assert resumed.said == []


def raised(kind: str, error: str) -> str:
    """What Tune writes down of an error that a worker lived to tell."""
    return f"Failure # 1 (occurred at x)\nray::ImplicitFunc.train() (pid=1)\n  File\nx.PackError: {kind}: {error}\n"


def test_a_failure_that_is_tried_again_is_no_failure_in_the_end(driver: Driver) -> None:
    pack = driver.packs[1]
    driver.start(pack)
    driver.report(pack, 10, driver.keys[pack])
    assert driver.fail(pack, raised("application", "ValueError: boom")) == "retry"
    assert driver.observer.failed == {pack: "ValueError: boom"}
    record = driver.journal.read()[-1]
    assert (record["kind"], record["again"], record["error"]) == ("application", True, "ValueError: boom")
    assert {lane.status for lane in driver.state().lanes.values() if lane.pack == pack} == {"failed"}
    assert driver.progress.counts() == {"waiting": 12}
    assert "to be tried again" in driver.said[0]
    driver.start(pack)
    assert driver.observer.failed == {}
    assert {lane.status for lane in driver.state().lanes.values() if lane.pack == pack} == {"running"}
    driver.report(pack, 80, [], dict.fromkeys(driver.keys[pack], ("completed", 80)))
    assert pack not in driver.state().unfinished
    assert driver.observer.fatal is None


def test_a_pack_given_up_is_failed_and_keeps_the_lanes_that_had_ended(driver: Driver) -> None:
    pack = driver.packs[1]
    lost, *others = driver.keys[pack]
    driver.start(pack)
    driver.report(pack, 10, others, {lost: ("diverged", 10)})
    driver.fail(pack, raised("application", "E: boom"))
    driver.start(pack)
    assert driver.fail(pack, raised("application", "E: boom")) == "give_up"
    assert driver.observer.failed == {pack: "E: boom"}
    assert pack not in driver.observer.unfinished, "it is not as if somebody had interrupted the sweep"
    reasons = {key: lane.reason for key, lane in driver.state().lanes.items() if lane.pack == pack}
    assert reasons == {lost: "diverged"} | dict.fromkeys(others, "failed")
    assert driver.progress.counts() == {"waiting": 8, "diverged": 1, "failed": 3}
    assert pack in driver.state().unfinished, "the next run of the sweep tries it again"


def test_a_pack_without_room_on_its_gpu_is_told_what_helps(driver: Driver) -> None:
    pack = driver.packs[1]
    driver.start(pack)
    assert driver.fail(pack, raised("gpu_memory", "OutOfMemoryError: CUDA out of memory.")) == "give_up"
    assert "fewer lanes in a pack, a smaller batch_size, or raise resources.gpu" in driver.observer.failed[pack]
    assert "CUDA out of memory" in driver.observer.failed[pack]


def test_a_pack_killed_for_the_machines_memory_is_tried_alone_once(driver: Driver) -> None:
    pack, text = driver.packs[1], "1 worker(s) were killed due to the node running low on memory."
    driver.start(pack)
    assert driver.fail(pack, text) == "retry_alone"
    driver.start(pack)
    assert driver.fail(pack, text) == "give_up"
    assert "though the pack ran alone" in driver.observer.failed[pack]


def test_a_loss_that_tune_tells_of_twice_is_one_loss(driver: Driver) -> None:
    pack, loss = driver.packs[1], "The actor died.\n\tactor_id: a1\nkilled due to the node running low on memory\n"
    told = f"Failure # 1 (occurred at x)\n{loss}"
    assert driver.fail(pack, told) == "retry_alone"
    assert driver.fail(pack, f"{told}Failure # 2 (occurred at x)\n{loss}") == "retry"
    assert [record["event"] for record in driver.journal.read()].count("pack_failed") == 1
    assert driver.observer.waiting == {pack}
    driver.start(pack)
    assert driver.observer.waiting == set()


def test_many_failures_in_a_row_end_the_sweep(driver: Driver) -> None:
    answers = []
    for pack in driver.packs:
        driver.start(pack)
        answers.append(driver.fail(pack, "The actor died."))
    assert answers == ["retry", "retry", "end_sweep"]
    assert driver.observer.fatal == ("lost", "The actor died.")
    assert driver.journal.read()[-1]["again"] is False


def test_a_full_disk_ends_the_sweep_at_once(driver: Driver) -> None:
    driver.start(driver.packs[1])
    assert driver.fail(driver.packs[1], raised("disk_full", "OSError: No space left on device")) == "end_sweep"
    assert driver.observer.fatal == ("disk_full", "OSError: No space left on device")


def test_a_damaged_checkpoint_is_recorded_once(driver: Driver) -> None:
    pack = driver.packs[1]
    result = {"step": 10, "attempt": 2, "seconds": 1.0, "resumed_at": 0, "warnings": 0, "lanes": 4}
    result |= {"alive": driver.keys[pack], "ended": [], "val_loss": 3.0}
    result["damaged"] = [{"checkpoint": "packs/p/attempt-1/checkpoint-00000060", "message": "its content is not ..."}]
    for _ in range(3):
        driver.observer.on_trial_result(0, [], tune_trial(pack), result)
    (record,) = (record for record in driver.journal.read() if record["event"] == "checkpoint_damaged")
    assert record["pack"] == pack
    assert driver.observer.damaged == {record["checkpoint"]: record["message"]}


def test_the_journal_keeps_an_error_short(driver: Driver) -> None:
    driver.fail(driver.packs[1], raised("application", "Error: " + "word " * 100))
    assert driver.journal.read()[-1]["error"] == "Error: " + "word " * 57 + "word ..."


def test_packs_left_where_they_were_are_unfinished(driver: Driver) -> None:
    driver.start(driver.packs[0])
    assert driver.observer.unfinished == driver.packs


def test_nothing_of_it_is_pickled_with_tunes_state(driver: Driver) -> None:
    assert driver.observer.__getstate__() == {}


def test_workers_that_never_begin_end_the_sweep(driver: Driver) -> None:
    text = "The actor is dead because its worker process has died."
    packs = itertools.cycle(driver.packs)
    assert [driver.fail(next(packs), text) for _ in range(3)] == ["retry", "retry", "end_sweep"]
    assert driver.observer.fatal is not None
