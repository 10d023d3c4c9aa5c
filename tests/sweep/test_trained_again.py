"""A pack whose chunks were damaged trains again from before what is lost, and comes to the same rows and ends."""

from pathlib import Path

import pytest
from small_plan import small_plan, tune_trial
from test_trial import RATES, RULES, Pack

from orchestrator.results.consolidate import consolidate
from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.store import Store
from orchestrator.sweep.observer import SweepObserver
from orchestrator.sweep.progress import Progress


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    with pytest.MonkeyPatch.context() as patch:
        pack = Pack(tmp_path_factory.mktemp("undisturbed"), patch, RATES, early_terminate=RULES)
        pack.run()
    return pack


def tell(pack: Pack) -> None:
    """Write into the journal what the driver would have heard."""
    journal, known = Journal(pack.store), pack.pack.pack
    journal.append({"event": "pack_started", "pack": known})
    for result in pack.results:
        journal.append({"event": "reported", "pack": known, **{k: result[k] for k in ("attempt", "step", "seconds")}})
    for end in pack.results[-1]["ended"]:
        journal.append({"event": "lane_ended", "pack": known, **end})


def damage(pack: Pack, chunk: str) -> None:
    path = Path(pack.store.uri, "packs", pack.pack.pack, chunk)
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize("chunk", ["steps-000000", "layers-000002", "steps-000005", "events-000001"])
def test_a_finished_pack(chunk: str, undisturbed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = Pack(tmp_path, monkeypatch, RATES, early_terminate=RULES)
    pack.run()
    tell(pack)
    damage(pack, f"attempt-1/{chunk}.parquet")
    assert consolidate(pack.store).packs_with_losses == [pack.pack.pack]
    results = pack.run()
    assert pack.ends() == undisturbed.ends()
    assert all("val_loss" not in result for result in results), "nobody decides on it again"
    tell(pack)
    assert not consolidate(pack.store).damaged
    for table in ("steps", "layers"):
        assert pack.rows(table) == undisturbed.rows(table)


@pytest.mark.parametrize(("stop", "began"), [(21, [0]), (35, [0, 21])], ids=["the first lines", "the last lines"])
def test_an_unfinished_pack_goes_back_to_a_checkpoint_before_the_hole(
    stop: int, began: list[int], undisturbed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, monkeypatch, RATES, early_terminate=RULES)
    pack.run(stop_at=stop)
    tell(pack)
    damage(pack, "attempt-1/steps-000000.parquet" if stop == 21 else "attempt-1/steps-000003.parquet")
    results = pack.run()
    assert results[0]["resumed_at"] in began
    assert pack.ends() == undisturbed.ends()
    for table in ("steps", "layers"):
        assert pack.rows(table) == undisturbed.rows(table)


def test_ends_that_were_decided_elsewhere_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler stops a pack on what others measured; by the time it trains again they have gone on."""
    pack = Pack(tmp_path, monkeypatch, [0.001])
    pack.run(stop_at=21)
    tell(pack)
    for lane in pack.pack.lanes:
        end = {"key": lane.key, "reason": "asha", "step": 21, "value": 3.0, "reference": 2.0, "message": "3 > 2"}
        Journal(pack.store).append({"event": "lane_ended", "pack": pack.pack.pack, **end})
    damage(pack, "attempt-1/steps-000001.parquet")
    results = pack.run()
    assert [result["step"] for result in results] == [7, 14, 21]
    assert set(pack.ends().values()) == {("asha", 21)}
    assert {end["reference"] for end in results[-1]["ended"]} == {2.0}


def test_the_driver_waits_for_a_pack_that_trains_again_and_records_no_end_twice(tmp_path: Path) -> None:
    plan, journal = small_plan(tmp_path), Journal(Store.open(tmp_path / "run"))
    pack = plan.packs[1]
    ends = [{"key": lane.key, "reason": "completed", "step": 80, "message": "all 80 steps"} for lane in pack.lanes]
    for end in ends:
        journal.append({"event": "lane_ended", "pack": pack.pack, **end})
    state = SweepState.from_records(plan.to_dict(), journal.read())
    assert pack.pack not in SweepObserver(state, journal, Progress(plan, {}), 2, 10).unfinished
    observer = SweepObserver(state, journal, Progress(plan, {}), 2, 10, [pack.pack])
    trial = tune_trial(pack.pack)
    observer.on_trial_start(0, [], trial)
    result = {"step": 80, "attempt": 2, "seconds": 1.0, "resumed_at": 0, "warnings": 0, "lanes": 0, "alive": []}
    observer.on_trial_result(0, [], trial, {**result, "ended": ends, "damaged": []})
    assert pack.pack in observer.unfinished, "a signal now leaves it half way"
    observer.on_trial_complete(0, [], trial)
    assert pack.pack not in observer.unfinished
    told = [record["key"] for record in journal.read() if record["event"] == "lane_ended"]
    assert sorted(told) == sorted(lane.key for lane in pack.lanes)
