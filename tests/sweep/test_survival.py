"""What Tune is told to do with packs that failed, through its real controller's calls."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.execution.placement_groups import resource_dict_to_pg_factory

from orchestrator.sweep import survival
from orchestrator.sweep.retries import Action
from orchestrator.sweep.survival import RetryingScheduler, whole_node


class Controller:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def stop_trial(self, trial: Any) -> None:
        self.asked.append(("stop", trial.config["pack"]))

    def request_stop_experiment(self) -> None:
        self.asked.append("end")


def trial() -> Any:
    asked: list[dict[str, float]] = []
    resources = resource_dict_to_pg_factory({"cpu": 1.0, "gpu": 0.5})
    return SimpleNamespace(
        config={"pack": "p1"}, placement_group_factory=resources, asked=asked, update_resources=asked.append
    )


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [(True, 64.0, 0.0), (True, 16.0, 8.0), (True, 8.0, 1.0), (False, 128.0, 8.0)]
    listed = [{"Alive": alive, "Resources": {"CPU": cpu, "GPU": gpu}} for alive, cpu, gpu in there]
    monkeypatch.setattr(survival.ray, "nodes", lambda: listed)


@pytest.mark.parametrize(
    ("action", "asked", "resources"),
    [
        ("retry", [], []),
        ("retry_alone", [], [{"cpu": 16.0, "gpu": 0.5}]),
        ("give_up", [("stop", "p1")], []),
        ("end_sweep", ["end"], []),
    ],
)
def test_each_action_is_passed_on(action: Action, asked: list[Any], resources: list[Any], nodes: None) -> None:
    scheduler, controller, failed = RetryingScheduler(), Controller(), trial()
    scheduler.on_trial_add(controller, failed)
    assert controller.asked == []
    scheduler.on_failure = lambda trial: action
    scheduler.on_trial_error(controller, failed)
    scheduler.on_trial_add(controller, failed)
    assert controller.asked == asked
    assert failed.asked == resources


def test_where_nobody_is_asked_every_pack_is_tried_again() -> None:
    scheduler, controller, failed = RetryingScheduler(), Controller(), trial()
    scheduler.on_trial_error(controller, failed)
    scheduler.on_trial_add(controller, failed)
    assert controller.asked == failed.asked == []


def test_a_node_is_looked_for_that_has_what_the_pack_needs(nodes: None) -> None:
    assert whole_node({"CPU": 1.0}) == {"cpu": 64.0}
    assert whole_node({"CPU": 1.0, "GPU": 1.0}) == {"cpu": 16.0, "gpu": 1.0}
    assert whole_node({"CPU": 2.0, "TPU": 1.0}) == {"cpu": 2.0, "TPU": 1.0}
