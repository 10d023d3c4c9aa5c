"""The Ray Tune scheduler: alone with recorded results, and once inside a real Tune run."""

import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from orchestrator.sweep.schedulers import SCHEDULERS, AshaScheduler
from orchestrator.sweep.stopping import Asha, Decision
from orchestrator.sweep.survival import RetryingScheduler

NAN = math.nan
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
CELLS = {"a": "E4M3", "b": "E5M2", "c": "E4M3"}


class Told(list[tuple[str, Decision]]):
    """Remembers the decisions it was told of."""

    def __call__(self, pack: str, decision: Decision) -> None:
        self.append((pack, decision))

    @property
    def steps(self) -> dict[str, int]:
        return {pack: decision.step for pack, decision in self}


def scheduler(told: Told, mode: str = "min", scope: str = "sweep", metric: str = "val_loss") -> AshaScheduler:
    return AshaScheduler(Asha(10, 2, 80), metric, mode, scope, CELLS, told)


def answer(scheduler: AshaScheduler, pack: str, result: dict[str, Any]) -> str:
    return scheduler.on_trial_result(None, SimpleNamespace(config={"pack": pack, "lr": 1e-3}), result)


@pytest.mark.parametrize(
    ("mode", "scope", "second", "expected"),
    [
        ("min", "sweep", ("b", 4.0), STOP),
        ("min", "sweep", ("b", 2.0), CONTINUE),
        ("max", "sweep", ("b", 4.0), CONTINUE),
        ("max", "sweep", ("b", 2.0), STOP),
        ("min", "cell", ("b", 4.0), CONTINUE),
        ("min", "cell", ("c", 4.0), STOP),
        ("min", "sweep", ("b", NAN), STOP),
        ("max", "sweep", ("b", NAN), STOP),
        ("min", "sweep", ("b", None), STOP),
    ],
)
def test_second_pack_at_a_rung_after_a_three(
    mode: str, scope: str, second: tuple[str, float | None], expected: str
) -> None:
    told = Told()
    asha = scheduler(told, mode, scope)
    assert answer(asha, "a", {"step": 10, "val_loss": 3.0, "done": False}) == CONTINUE
    assert answer(asha, second[0], {"step": 10, "val_loss": second[1]}) == expected
    assert told.steps == ({second[0]: 10} if expected == STOP else {})


@pytest.mark.parametrize("result", [{"done": True}, {"step": 10}, {"val_loss": 99.0}, {"step": 10, "loss": 99.0}])
def test_results_without_step_or_metric_go_on(result: dict[str, Any]) -> None:
    asha = scheduler(Told())
    answer(asha, "a", {"step": 10, "val_loss": 3.0})
    assert answer(asha, "b", result) == CONTINUE


@pytest.mark.parametrize(
    ("mode", "value", "message"),
    [
        (
            "min",
            4.0,
            "val_loss 4 at step 10 is above 3.5, the cutoff of the best 1 in 2 of 2 values on the rung of step 10",
        ),
        (
            "max",
            2.0,
            "negated val_loss -2 at step 10 is above -2.5, the cutoff of the best 1 in 2 of 2 values on the rung",
        ),
    ],
)
def test_decisions_name_the_metric(mode: str, value: float, message: str) -> None:
    told = Told()
    asha = scheduler(told, mode)
    answer(asha, "a", {"step": 10, "val_loss": 3.0})
    answer(asha, "b", {"step": 10, "val_loss": value})
    assert told[0][1].message.startswith(message)


def test_a_stop_is_told_once_though_ray_retries_the_trial() -> None:
    told = Told()
    asha = scheduler(told)
    answer(asha, "a", {"step": 20, "val_loss": 1.0})
    answers = [answer(asha, "b", {"step": step, "val_loss": 2.0}) for step in (20, 10, 20)]
    assert answers == [STOP, CONTINUE, STOP]
    assert [(pack, decision.step) for pack, decision in told] == [("b", 20)]


def test_an_audited_pack_goes_on_and_is_told_of_once() -> None:
    told = Told()
    asha = AshaScheduler(Asha(10, 2, 80, audit=1.0), "val_loss", "min", "sweep", CELLS, told)
    answer(asha, "a", {"step": 10, "val_loss": 1.0})
    assert [answer(asha, "b", {"step": step, "val_loss": 2.0}) for step in (10, 20, 40, 80)] == [CONTINUE] * 4
    assert [(pack, decision.step, decision.audited) for pack, decision in told] == [("b", 10, True)]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_pack_whose_lanes_are_all_lost_sets_no_bar(mode: str) -> None:
    """It says so, and reports no metric."""
    sign = 1.0 if mode == "min" else -1.0
    asha = scheduler(Told(), mode)
    answer(asha, "a", {"step": 10, "val_loss": sign * 1.0})
    answer(asha, "a", {"step": 20, "lost": True})
    assert answer(asha, "b", {"step": 10, "val_loss": sign * 2.0}) == CONTINUE
    assert answer(asha, "c", {"step": 10, "val_loss": sign * 3.0}) == STOP


def test_a_pack_that_trains_again_keeps_its_place_on_the_rungs() -> None:
    """It reports no metric either, but is not lost."""
    asha = scheduler(Told())
    answer(asha, "a", {"step": 10, "val_loss": 1.0})
    assert answer(asha, "a", {"step": 20}) == CONTINUE
    assert answer(asha, "b", {"step": 10, "val_loss": 2.0}) == STOP


@pytest.mark.parametrize(
    ("metric", "mode", "accepted"),
    [
        (None, None, True),
        ("val_loss", "min", True),
        ("val_loss", None, True),
        ("loss", "min", False),
        ("val_loss", "max", False),
    ],
)
def test_search_properties_must_be_its_own(metric: str | None, mode: str | None, accepted: bool) -> None:
    assert scheduler(Told()).set_search_properties(metric, mode, num_samples=1) is accepted


def test_pickling_keeps_the_rungs_and_drops_the_callback() -> None:
    def on_decision(pack: str, decision: Decision) -> None:
        raise AssertionError("a closure such as pickle cannot keep")

    original = AshaScheduler(Asha(10, 2, 80), "val_loss", "min", "sweep", CELLS, on_decision)
    answer(original, "a", {"step": 10, "val_loss": 3.0})
    restored = pickle.loads(pickle.dumps(original))
    with pytest.raises(RuntimeError, match="attach"):
        restored.on_trial_add(None, SimpleNamespace(config={"pack": "b"}))
    told = Told()
    restored.attach(told)
    restored.on_trial_add(None, SimpleNamespace(config={"pack": "b"}))
    assert answer(restored, "b", {"step": 10, "val_loss": 4.0}) == STOP
    assert told.steps == {"b": 10}


@pytest.mark.parametrize(("mode", "scope"), [("least", "sweep"), ("min", "rung")])
def test_unknown_words_are_refused(mode: str, scope: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        scheduler(Told(), mode, scope)


@pytest.mark.parametrize(("name", "kind"), [("asha", AshaScheduler), ("none", RetryingScheduler)])
def test_registry_builds_by_name(name: str, kind: type[RetryingScheduler]) -> None:
    built = SCHEDULERS[name](Asha(10, 2, 80), "val_loss", "min", "sweep", CELLS, Told())
    assert type(built) is kind


#: Validation losses at steps 10, 20, 40, 80 of packs that run one after the other, in this order.
RECORDED: dict[str, tuple[float | None, ...]] = {
    "control": (9.0, 9.0, 9.0, 9.0),  # exempt
    "good": (3.0, 2.5, 2.0, 1.8),
    "better": (2.5, 2.0, 1.5, 1.2),
    "slow": (4.0, 1.0, 1.0, 1.0),  # above 3.5, the median of 9, 3, 2.5, 4
    "nan": (NAN, 1.0, 1.0, 1.0),
    "fading": (2.8, 2.4, 3.0, 1.0),  # above 2.5, the median of 9, 2, 1.5, 3
    "silent": (None, None, None, None),  # reports no validation loss at all
    "flaky": (2.7, 2.6, 1.0, 1.0),  # fails once after step 10; above 2.5, the median of 9, 2.5, 2, 2.4, 2.6
}
STEPS = (10, 20, 40, 80)


@pytest.fixture
def one_cpu_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_real_tune_run_stops_the_right_packs(one_cpu_ray: None, tmp_path: Path) -> None:
    recorded, steps = RECORDED, STEPS

    failed = tmp_path / "failed"

    def run_pack(config: dict[str, Any]) -> None:
        if config["pack"] == "flaky" and not failed.exists():
            failed.touch()
            tune.report({"step": 10, "val_loss": 2.9})
            raise OSError("the machine went away")
        for step, value in zip(steps, recorded[config["pack"]], strict=True):
            tune.report({"step": step} if value is None else {"step": step, "val_loss": value})

    told = Told()
    asha = AshaScheduler(
        Asha(10, 2, 80, {"control"}), "val_loss", "min", "sweep", dict.fromkeys(RECORDED, "E4M3"), told
    )
    results = tune.Tuner(
        run_pack,
        param_space={"pack": tune.grid_search(list(RECORDED))},
        tune_config=tune.TuneConfig(scheduler=asha, reuse_actors=True),
        run_config=tune.RunConfig(
            name="recorded",
            storage_path=str(tmp_path),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    ).fit()
    assert not results.errors
    assert told.steps == {"slow": 10, "nan": 10, "fading": 40, "flaky": 20}
    last = {result.config["pack"]: result.metrics["step"] for result in results}
    assert last == dict.fromkeys(RECORDED, 80) | told.steps
    at_first_rung = [(pack, value) for _, rung, pack, _, value in asha.asha.state()["entries"] if rung == 10]
    assert [value for pack, value in at_first_rung if pack == "flaky"] == [2.7], "once, the retry's"
