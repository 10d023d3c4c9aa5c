"""One pack from its plan to its rows, without Ray: what it reports, and that interruptions leave no trace in it."""

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_plan import small_plan

from altgrad.training.config import RunConfig
from altgrad.training.corpus import load_corpus
from orchestrator.corpus import corpus_of
from orchestrator.plan import Plan, make_plan
from orchestrator.results.consolidate import consolidate
from orchestrator.results.queries import query
from orchestrator.results.store import Store
from orchestrator.run_folder import plan_sweep
from orchestrator.sweep import trial
from orchestrator.sweep.checkpoint_folders import ASKED
from orchestrator.sweep.retries import PackError

#: Nothing divides anything else here: reports at 7, 14, ..., 35, 40; checkpoints at some of them.
RUN: dict[str, Any] = {
    "steps": 40,
    "report_interval": 7,
    "checkpoint_interval": 10,
    "eval_batches": 1,
    "batch_size": 2,
    "warmup_steps": 3,
    "grad_clip": 0,
    "optimizer": "adamw",
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8},
    "ranks": {"interval": 7, "warmup_steps": 7},
}
#: One diverges at once; the only rung leaves two of the others.
RATES = [0.001, 0.003, 0.01, 0.03, 1e30]
RULES = {"type": "asha", "min_iter": 20, "eta": 2}


class Interrupted(BaseException):
    """Stands in for Ray, which ends a trial from within its report."""


class Pack:
    """The second pack of a small plan (the first is its control), run as a worker runs it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, rates: list[float], **changes: Any) -> None:
        text = folder / "text.txt"
        text.write_text("to be or not to be, that is the question " * 40)
        parameters = {"format": {"values": ["fp32", "E4M3"]}, "lr": {"values": rates}, "seed": {"values": [1, 2]}}
        run = {**RUN, "corpus": str(text), **changes.pop("run", {})}
        self.plan: Plan = plan_sweep(small_plan(folder, {"parameters": parameters, "run": run, **changes}).spec)
        self.store = Store.open(folder / "run")
        self.store.write_bytes("plan.json", json.dumps(self.plan.to_dict()).encode())
        self.pack = self.plan.packs[1]
        self.lr = {lane.key: lane.config.lr for lane in self.pack.lanes}
        self.results: list[dict[str, Any]] = []
        #: Steps of the checkpoints that were asked for.
        self.saved: list[int] = []
        self._stop_at: int | None = None
        patch.setattr(trial.tune, "report", self._report)

    def _report(self, result: dict[str, Any]) -> None:
        if "saved" in result:
            self.saved.append(result["saved"])
            return
        self.results.append(result)
        if result["step"] == self._stop_at:
            raise Interrupted

    def run(self, stop_at: int | None = None) -> list[dict[str, Any]]:
        """Run the pack, up to its report at a step or to its end; what it reported."""
        self.results, self._stop_at = [], stop_at
        config = {"pack": self.pack.pack, "store": self.store.uri, "threads": 1, "device": "cpu"}
        try:
            trial.run_pack({**config, "wandb": "disabled", "wandb_folder": self.store.uri, "wandb_interval": 10})
        except Interrupted:
            assert stop_at is not None
        return self.results

    def ends(self) -> dict[str, tuple[str, int]]:
        """How each lane ended, from the last report."""
        return {end["key"]: (end["reason"], end["step"]) for end in self.results[-1]["ended"]}

    def rows(self, table: str) -> list[dict[str, Any]]:
        consolidate(self.store)
        return query(self.store, f"SELECT * EXCLUDE (pack, attempt) FROM {table} ORDER BY ALL").to_pylist()


def test_each_report_has_what_the_driver_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = Pack(tmp_path, monkeypatch, [0.001])
    results = pack.run()
    assert [result["step"] for result in results] == [7, 14, 21, 28, 35, 40]
    assert all(result["attempt"] == 1 and result["resumed_at"] == 0 for result in results)
    assert all(math.isfinite(result["val_loss"]) and "done" not in result for result in results)
    assert [len(result["ended"]) for result in results] == [0, 0, 0, 0, 0, 2]
    assert set(pack.ends().values()) == {("completed", 40)}


def test_a_pack_whose_lanes_all_end_at_one_report_reports_no_metric_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, monkeypatch, [1e30])
    *_, last = pack.run()
    assert set(pack.ends().values()) == {("diverged", last["step"])}
    assert len(pack.ends()) == 2
    assert "val_loss" not in last
    assert last["alive"] == []
    assert last["step"] < 40


def test_a_rung_that_is_only_reached_with_the_last_step_drops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"type": "asha", "min_iter": 36, "eta": 2}
    pack = Pack(tmp_path, monkeypatch, [0.001, 0.01], early_terminate=rules)
    pack.run()
    assert set(pack.ends().values()) == {("completed", 40)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    with pytest.MonkeyPatch.context() as patch:
        pack = Pack(tmp_path_factory.mktemp("undisturbed"), patch, RATES, early_terminate=RULES)
        pack.run()
    return pack


def test_lanes_end_by_themselves_by_halving_and_by_completing(undisturbed: Pack) -> None:
    by_rate: dict[float, set[tuple[str, int]]] = {}
    for key, end in undisturbed.ends().items():
        by_rate.setdefault(undisturbed.lr[key], set()).add(end)
    assert by_rate.pop(1e30) == {("diverged", 7)}
    assert sorted(ends.pop() for ends in by_rate.values()) == [("asha", 21)] * 2 + [("completed", 40)] * 2


@pytest.mark.parametrize("stops", [[7], [14], [21], [28], [35], [40], [7, 14, 21], [28, 21, 35], [35, 35]], ids=str)
def test_interruptions_change_neither_rows_nor_ends(
    stops: list[int], undisturbed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every report, also those between checkpoints, after lanes ended, and after the last of all."""
    pack = Pack(tmp_path, monkeypatch, RATES, early_terminate=RULES)
    for step in stops:
        pack.run(stop_at=step)
    results = pack.run()
    assert pack.ends() == undisturbed.ends(), "also of lanes that were in no checkpoint any more"
    assert results[0]["attempt"] == len(stops) + 1
    assert results[0]["step"] > results[0]["resumed_at"]
    for table in ("steps", "layers"):
        assert pack.rows(table) == undisturbed.rows(table)


@pytest.mark.parametrize("stops", [[], [28]], ids=["undisturbed", "interrupted"])
def test_audited_lanes_run_to_the_end_and_change_nothing_for_the_others(
    stops: list[int], undisturbed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, monkeypatch, RATES, early_terminate={**RULES, "audit": 1.0})
    for step in stops:
        pack.run(stop_at=step)
    *_, last = pack.run()
    told = undisturbed.ends()
    audited = {end["key"]: (end["reason"], end["step"]) for end in last["ended"] if end.get("audited")}
    ended = {end["key"]: (end["reason"], end["step"]) for end in last["ended"] if not end.get("audited")}
    assert audited == {key: end for key, end in told.items() if end[0] == "asha"}
    assert ended == told | dict.fromkeys(audited, ("completed", 40))
    assert last["val_loss"] == undisturbed.results[-1]["val_loss"], "a mean over those that were not to be stopped"
    rows = {(row["key"], row["step"]): row for row in pack.rows("steps")}
    assert all(rows[row["key"], row["step"]] == row for row in undisturbed.rows("steps"))
    assert {key for key, step in rows if step == 40} == {key for key, end in ended.items() if end == ("completed", 40)}


def test_a_resumed_pack_tells_at_once_of_lanes_that_ended_before(
    undisturbed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, monkeypatch, RATES, early_terminate=RULES)
    pack.run(stop_at=35)
    first, *_ = pack.run()
    assert first["resumed_at"] >= 21
    told = {end["key"]: (end["reason"], end["step"]) for end in first["ended"]}
    assert told == {key: end for key, end in undisturbed.ends().items() if end[0] != "completed"}
    assert set(first["alive"]) == {key for key, end in undisturbed.ends().items() if end[0] == "completed"}


def test_a_damaged_checkpoint_is_told_of_and_changes_nothing(
    undisturbed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, monkeypatch, RATES, early_terminate=RULES)
    pack.run(stop_at=35)
    newest = max(path for path in pack.store.list("packs") if path.endswith("state.safetensors"))
    pack.store.write_bytes(newest, pack.store.read_bytes(newest)[:-1])
    results = pack.run()
    (damage,) = results[0]["damaged"]
    assert damage["checkpoint"] == newest.rsplit("/", 1)[0]
    assert "damaged checkpoint" in damage["message"]
    assert results[0]["resumed_at"] < 30
    assert pack.ends() == undisturbed.ends()
    for table in ("steps", "layers"):
        assert pack.rows(table) == undisturbed.rows(table)


def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = Pack(tmp_path, monkeypatch, [0.001])

    def write(target: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as full:
        full.setattr("orchestrator.results.local.write", write)
        with pytest.raises(PackError, match=r"^disk_full: OSError: .*No space left on device"):
            pack.run()
    assert [result["step"] for result in pack.run()] == [7, 14, 21, 28, 35, 40], "there is room again"


def test_a_checkpoint_is_saved_where_the_driver_asks_for_one(
    undisturbed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, monkeypatch, RATES, early_terminate=RULES, run={"checkpoint_interval": 1000})
    pack.store.write_bytes(ASKED, b"")
    pack.run(stop_at=28)
    assert pack.saved == [7, 14, 21]
    pack.store.delete(ASKED)
    results = pack.run()
    assert results[0]["resumed_at"] == 21
    assert pack.ends() == undisturbed.ends()
    for table in ("steps", "layers"):
        assert pack.rows(table) == undisturbed.rows(table)


def test_another_text_than_the_planned_one_is_refused_before_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, monkeypatch, [0.001])
    facts = {**pack.plan.corpus, "hash": "0" * 64}
    planned = make_plan(pack.plan.spec, facts)
    pack.store.write_bytes("plan.json", json.dumps(planned.to_dict()).encode())
    pack.pack = planned.packs[1]
    with pytest.raises(PackError, match=r"^application: CorpusError: .*every node must see the same text"):
        pack.run()
    assert pack.results == []
    (told,) = pack.store.list("packs")
    assert told.endswith("attempt-1/error.txt")
    assert pack.store.read_bytes(told).startswith(b"Traceback")


def test_a_corpus_is_read_where_the_plan_saw_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that was planned with a relative path can be resumed from another folder."""
    (tmp_path / "text.txt").write_text("a rung is a code " * 20)
    monkeypatch.chdir(tmp_path)
    config = RunConfig(corpus="text.txt")
    planned = {"corpus": str(tmp_path / "text.txt"), "hash": corpus_of(config).hash}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_corpus.cache_clear()
    assert trial._checked_corpus(config, planned).hash == planned["hash"]
