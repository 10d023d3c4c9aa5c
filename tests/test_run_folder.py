"""A run's folder is made once and recognised afterwards; nothing enters a folder that is another's."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from altgrad.training.config import ConfigError, CorpusError
from orchestrator.plan import Plan, make_plan
from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.store import Store
from orchestrator.run_folder import (
    DamagedRunError,
    RunFolderError,
    claim,
    open_run,
    plan_sweep,
    read_plan,
    run_store,
)
from orchestrator.space import SweepSpec, load_space

CORPUS = {"corpus": "stdlib", "hash": "c0ffee", "tokens": 1000, "vocabulary": 256}
SPACE: dict[str, Any] = {
    "name": "x",
    "parameters": {"format": {"values": ["fp32", "E4M3"]}, "seed": {"values": [1, 2]}},
    "run": {"steps": 10, "corpus": "text.txt", "model": {"n_layer": 1, "n_embd": 32, "n_head": 2, "block_size": 8}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything happens in an empty folder with a text to train on."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be, that is the question " * 20)
    return tmp_path


def space(**changes: Any) -> SweepSpec:
    Path("x.yaml").write_text(json.dumps({**SPACE, **changes}))
    return load_space(Path("x.yaml"), [])


def plan(**changes: Any) -> Plan:
    return make_plan(space(**changes), CORPUS)


# --- claiming


def test_a_new_folder_holds_the_space_and_the_plan() -> None:
    store = run_store("x", "runs")
    state = claim(plan(), store).state
    assert store.list() == ["plan.json", "sweep.yaml"]
    assert read_plan(store).to_dict() == plan().to_dict()
    assert load_space(Path("runs/x/sweep.yaml"), []) == plan().spec
    assert len(state.unfinished) == 2


def test_the_same_sweep_finds_its_folder_again_and_leaves_the_plan_alone() -> None:
    store = run_store("x", "runs")
    claim(plan(), store)
    before = store.read_bytes("plan.json")
    Journal(store).append({"event": "pack_started", "pack": plan().packs[0].pack})
    state = claim(plan(name="y", description="named otherwise, the same sweep"), store).state
    assert store.read_bytes("plan.json") == before
    assert state.attempts == {plan().packs[0].pack: 1}


def test_another_sweep_is_refused_and_told_what_to_do() -> None:
    store = run_store("x", "runs")
    claim(plan(), store)
    with pytest.raises(RunFolderError, match=r"already holds another sweep.*--name"):
        claim(plan(parameters={"seed": {"values": [1]}}), store)


def test_the_same_sweep_laid_out_otherwise_runs_as_the_folder_has_it() -> None:
    """The plan in the folder is what the workers go by."""
    store = run_store("x", "runs")
    claim(plan(), store)
    held = json.loads(store.read_bytes("plan.json"))
    held["packs"][0]["pack"] = "p999-00000000"
    store.write_bytes("plan.json", json.dumps(held).encode())
    for asked in (plan(), read_plan(store)):
        found = claim(asked, store)
        assert found.plan.packs[0].pack == found.state.unfinished[0] == "p999-00000000"
        assert found.widened is None


WIDER: dict[str, Any] = {"parameters": {"format": {"values": ["fp32", "E4M3", "E5M2"]}, "seed": {"values": [1, 2, 3]}}}


def test_a_wider_space_takes_the_plan_further_and_keeps_the_one_before() -> None:
    store = run_store("x", "runs")
    before = claim(plan(), store)
    end = {
        "pack": before.plan.packs[0].pack,
        "key": before.plan.packs[0].lanes[0].key,
        "reason": "completed",
        "step": 10,
    }
    Journal(store).append({"event": "lane_ended", **end})
    held = store.read_bytes("plan.json")
    found = claim(plan(**WIDER, max_failures=5), store)
    assert str(found.widened) == (
        "widened: 5 new trials in 3 packs; 4 known\nchanged from now on: max_failures: 2 -> 5"
    )
    assert read_plan(store).to_dict() == found.plan.to_dict()
    assert load_space(Path("runs/x/sweep.yaml"), []) == plan(**WIDER, max_failures=5).spec
    assert store.read_bytes("plan-1.json") == held
    assert [lane.status for lane in found.state.lanes.values()] == ["finished"] + ["planned"] * 8
    (record,) = [record for record in Journal(store).read() if record["event"] == "plan_changed"]
    assert (record["trials"], record["known"], record["packs"]) == (5, 4, [p.pack for p in found.plan.packs[2:]])
    assert claim(plan(**WIDER, max_failures=5), store).widened is None, "from now on it is the folder's own"


def test_each_plan_before_is_kept_and_a_widening_cut_off_is_done_again() -> None:
    store = run_store("x", "runs")
    claim(plan(), store)
    first = store.read_bytes("plan.json")
    claim(plan(**WIDER), store)
    second = store.read_bytes("plan.json")
    claim(plan(**WIDER, max_failures=5), store)
    assert [store.read_bytes(f"plan-{n}.json") for n in (1, 2)] == [first, second]
    store.write_bytes("plan.json", second)  # cut off after the plan before was kept
    claim(plan(**WIDER, max_failures=5), store)
    assert not store.exists("plan-3.json")


def test_what_is_refused_leaves_the_folder_as_it_is(other_process: int) -> None:
    def refuse(planned: Plan, state: SweepState) -> None:
        raise RuntimeError(f"{len(planned.packs)} packs, {len(state.unfinished)} of them unfinished")

    store = run_store("x", "runs")
    with pytest.raises(RuntimeError, match="2 packs, 2 of"):
        claim(plan(), store, refuse)
    assert store.list() == []
    claim(plan(), store)
    with pytest.raises(RuntimeError, match="5 packs, 5 of"):
        claim(plan(**WIDER), store, refuse)
    Journal(store).append({"event": "sweep_started", "host": socket.gethostname(), "pid": other_process})
    with pytest.raises(RunFolderError, match="is being run by process"):
        claim(plan(**WIDER), store)
    assert store.list() == ["journal.jsonl", "plan.json", "sweep.yaml"]


@pytest.fixture
def other_process() -> Iterator[int]:
    """A process that lives."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate()


@pytest.mark.parametrize(
    ("records", "refused"),
    [
        ([{"event": "sweep_started", "host": socket.gethostname(), "pid": "other"}], True),
        ([{"event": "sweep_started", "host": socket.gethostname(), "pid": "own"}], False),
        ([{"event": "sweep_started", "host": socket.gethostname(), "pid": 2**22 + 1}], False),
        ([{"event": "sweep_started", "host": "elsewhere", "pid": "other"}], False),
        ([{"event": "sweep_started", "host": socket.gethostname(), "pid": "other", "folder": "/nowhere/x"}], False),
        (
            [
                {"event": "sweep_started", "host": socket.gethostname(), "pid": "other"},
                {"event": "sweep_ended", "reason": "finished"},
            ],
            False,
        ),
    ],
    ids=["a living driver", "this process", "a dead driver", "another machine", "a copy", "a driver that ended"],
)
def test_a_sweep_that_is_being_run_is_not_run_twice(
    records: list[dict[str, Any]], refused: bool, other_process: int
) -> None:
    store = run_store("x", "runs")
    claim(plan(), store)
    pids = {"other": other_process, "own": os.getpid()}
    for record in records:
        Journal(store).append(record | {"pid": pids.get(record.get("pid"), record.get("pid"))})
    if refused:
        with pytest.raises(RunFolderError, match=f"is being run by process {other_process}"):
            claim(plan(), store)
    else:
        claim(plan(), store)


# --- finding


@pytest.mark.parametrize(
    "where", ["runs/x", "x", "./runs/x/", "../{name}/runs/x", "{path}/runs/x", "file://{path}/runs/x"]
)
def test_a_run_is_found_by_path_name_or_uri(where: str, folder: Path) -> None:
    claim(plan(), run_store("x", "runs"))
    found = open_run(where.format(name=folder.name, path=folder))
    assert Path(found.uri).resolve() == folder / "runs/x"


@pytest.mark.parametrize("where", ["y", "", "runs", "runs/x/plan.json", "file:///nowhere/x", "foo://bar/x", "://"])
def test_where_there_is_no_run_the_place_is_named(where: str) -> None:
    claim(plan(), run_store("x", "runs"))
    with pytest.raises(RunFolderError, match=r"^no sweep in|URI|://"):
        open_run(where)


def test_an_address_is_not_looked_for_under_runs() -> None:
    with pytest.raises(RunFolderError, match="no sweep in 'file:///nowhere/x'"):
        open_run("file:///nowhere/x")


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 65])
def test_a_name_cannot_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(RunFolderError, match="not a valid name"):
        run_store(name, "runs")


def test_a_relative_storage_is_where_the_person_stands(folder: Path) -> None:
    assert run_store("x", "my runs").uri == str(folder / "my runs" / "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{garbage", "Expecting property name"),
        (b"\xff\xfe", "Expecting value"),
        (b"[1]", "cannot be understood"),
        (b'{"schema_version": 99}', "version 99"),
        (b'{"schema_version": 1}', "it lacks 'name'"),
        (b'{"schema_version": 1, "name": ["x"]}', "expected text for name, got ['x']"),
    ],
)
def test_a_plan_that_cannot_be_understood_is_said_to_be_damaged(text: bytes, message: str) -> None:
    store = run_store("x", "runs")
    store.write_bytes("plan.json", text)
    for look in (lambda: open_run("x"), lambda: read_plan(store), lambda: claim(plan(), store)):
        with pytest.raises(DamagedRunError, match=r"plan\.json cannot be understood") as error:
            look()
        assert message in str(error.value)


def damaged(*keys: str | int) -> bytes:
    """The plan without what is at these keys."""
    held = plan().to_dict()
    inner = held
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return json.dumps(held).encode()


@pytest.mark.parametrize(
    ("keys", "lacks"),
    [
        *(((key,), f"it lacks '{key}'") for key in ("name", "description", "spec_hash", "roles", "packs", "space")),
        (("metric", "goal"), "it lacks 'metric.goal'"),
        (("corpus", "tokens"), "it lacks 'corpus.tokens'"),
        (("packs", 1, "cell"), "it lacks 'packs[1].cell'"),
        (("packs", 0, "lanes", 1, "config"), "it lacks 'packs[0].lanes[1].config'"),
        (("packs", 0, "lanes", 1, "config", "steps"), "it lacks 'packs[0].lanes[1].config.steps'"),
        (("packs", 0, "lanes", 1, "config", "seed"), "unknown parameter 'seed'"),
        (("space", "early_terminate"), "it lacks 'space.early_terminate'"),
        (("packs", slice(None)), "it is a plan without trials"),
        (("packs", 1, "lanes", slice(None)), "packs[1] is without trials"),
    ],
    ids=str,
)
def test_a_plan_that_lacks_what_it_is_read_by_is_refused_and_what_it_lacks_is_named(
    keys: tuple[Any, ...], lacks: str
) -> None:
    run_store("x", "runs").write_bytes("plan.json", damaged(*keys))
    with pytest.raises(DamagedRunError) as error:
        open_run("x")
    assert lacks in str(error.value)


def test_results_of_a_version_with_other_fields_are_read_but_not_gone_on_with() -> None:
    store = run_store("x", "runs")
    claim(plan(), store)
    held = json.loads(store.read_bytes("plan.json"))
    held["packs"][0]["lanes"][0]["config"]["from_the_future"] = 1
    store.write_bytes("plan.json", json.dumps(held).encode())
    assert open_run("x").uri == store.uri
    with pytest.raises(DamagedRunError, match="from_the_future"):
        read_plan(store)


# --- planning


def test_the_corpus_of_a_plan_is_an_absolute_path_with_its_facts(folder: Path) -> None:
    facts = plan_sweep(space()).corpus
    assert facts["corpus"] == str(folder / "text.txt")
    assert facts["tokens"] == len(Path("text.txt").read_bytes())
    assert len(facts["hash"]) == 64


def test_the_same_text_elsewhere_gives_the_same_trials() -> None:
    Path("copy.txt").write_bytes(Path("text.txt").read_bytes())
    one = plan_sweep(space())
    other = plan_sweep(space(run={**SPACE["run"], "corpus": "copy.txt"}))
    assert [pack.pack for pack in one.packs] == [pack.pack for pack in other.packs]


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        ({"corpus": "nowhere.txt"}, CorpusError, "nowhere.txt"),
        ({"model": {**SPACE["run"]["model"], "block_size": 4096}}, CorpusError, "4097"),
        ({"layers": [{"match": "*.atn.*", "format": "bf16"}]}, ConfigError, "matches no matrix"),
    ],
    ids=["missing corpus", "short corpus", "layers that match nothing"],
)
def test_what_would_fail_in_a_trial_fails_in_the_plan(
    run: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        plan_sweep(space(run={**SPACE["run"], **run}))
    assert message in str(caught.value)


def test_a_store_opened_again_by_its_uri_is_the_same_folder(folder: Path) -> None:
    store = run_store("x", "runs")
    claim(plan(), store)
    assert Store.open(store.uri).read_bytes("plan.json") == store.read_bytes("plan.json")
