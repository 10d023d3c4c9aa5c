"""The cluster file: valid to Ray, closed to strangers, cheap when idle, and in step with the tree and its page."""

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()
PAGE = (ROOT / "docs" / "cluster.md").read_text()
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
#: Shapes of credentials: AWS keys, private keys, tokens of forges and W&B, and long runs of hex or base64.
SECRETS = (
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    r"PRIVATE KEY",
    r"\b(gh[pousr]|glpat|hf|sk|wandb_v1)[-_][A-Za-z0-9_-]{16,}",
    r"\b[0-9a-f]{32,}\b",
    r"\b(?=\w*[0-9])(?=\w*[A-Z])[A-Za-z0-9]{40,}\b",
    r"(?i)(api_key|secret|password|auth_token)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9]",
)


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """The file as Ray completes it with its defaults for AWS."""
    return prepare_config(yaml.safe_load(TEXT))


@pytest.fixture(scope="module")
def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    return {name: kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def ray_start(commands: list[str]) -> list[str]:
    """The words of the one command that starts Ray."""
    (command,) = [command for command in commands if "ray start" in command]
    return shlex.split(command.replace(";", " ; "))


def test_ray_takes_the_file(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


def test_ray_refuses_the_file_with_a_key_it_does_not_know() -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        validate_config(prepare_config(yaml.safe_load(TEXT) | {"idle_minutes": 5}))


@pytest.mark.parametrize("name", ["cluster.yaml", "docs/cluster.md"])
@pytest.mark.parametrize("pattern", SECRETS)
def test_no_secret_stands_in_it(name: str, pattern: str) -> None:
    assert re.search(pattern, (ROOT / name).read_text()) is None


@pytest.mark.parametrize(
    ("secret", "pattern"),
    [
        ("AKIAIOSFODNN7EXAMPLE", SECRETS[0]),
        ("-----BEGIN RSA PRIVATE KEY-----", SECRETS[1]),
        ("ghp_" + "a1B2" * 9, SECRETS[2]),
        ("0123456789abcdef" * 4, SECRETS[3]),
        ("wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYab", SECRETS[4]),
        ("WANDB_API_KEY=abc", SECRETS[5]),
    ],
)
def test_a_secret_would_be_seen(secret: str, pattern: str) -> None:
    assert re.search(pattern, TEXT + f"\n  - export X {secret}\n")


@pytest.mark.parametrize("commands", START_COMMANDS)
def test_every_node_starts_with_the_token(cluster: dict[str, Any], commands: str) -> None:
    words = ray_start(cluster[commands])
    program = next(i for i, word in enumerate(words) if word.endswith("/ray"))
    before = words[words.index(";") + 1 : program]
    assert "RAY_AUTH_MODE=token" in before, "the assignment belongs to the command that starts Ray"


def test_the_token_goes_to_every_node_where_ray_looks_for_it(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"][0]


@pytest.mark.parametrize("commands", START_COMMANDS)
def test_a_node_stops_ray_once_and_runs_the_projects_own(cluster: dict[str, Any], commands: str) -> None:
    stop, start = cluster[commands]
    assert stop == "~/altgrad-venv/bin/ray stop"
    assert "~/altgrad-venv/bin/ray start" in start
    assert start.startswith("ulimit -n 65536;")


def test_ray_is_stopped_nowhere_else(prepared: dict[str, Any]) -> None:
    others = {key: value for key, value in prepared.items() if key not in START_COMMANDS}
    assert "ray stop" not in yaml.safe_dump(others)


def test_the_head_shows_its_dashboard_to_itself_only_and_launches_workers(cluster: dict[str, Any]) -> None:
    words = ray_start(cluster["head_start_ray_commands"])
    wanted = {
        "--head",
        "--port=6379",
        "--dashboard-host=127.0.0.1",
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
    }
    assert wanted <= set(words)
    assert "0.0.0.0" not in TEXT


def test_workers_are_spot_nodes_with_a_gpu_that_go_when_idle(cluster: dict[str, Any], workers: dict[str, Any]) -> None:
    assert {kind["node_config"]["InstanceType"] for kind in workers.values()} == {"g6.xlarge", "g5.xlarge"}
    for kind in workers.values():
        assert kind["resources"]["GPU"] == 1
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kind["min_workers"] == 0
        assert kind["max_workers"] <= cluster["max_workers"]
    assert 0 < cluster["idle_timeout_minutes"] <= 15
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_the_head_is_on_demand_and_runs_no_trial(cluster: dict[str, Any], prepared: dict[str, Any]) -> None:
    head = prepared["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["max_workers"] == 0


def test_a_node_has_the_locked_packages_and_what_building_the_project_reads(cluster: dict[str, Any]) -> None:
    install = [command for command in cluster["setup_commands"] if "pip install" in command]
    assert install == [
        "~/altgrad-venv/bin/pip install --quiet --require-hashes -r ~/altgrad/requirements.lock",
        "~/altgrad-venv/bin/pip install --quiet --no-deps --no-build-isolation ~/altgrad",
    ]
    for remote, local in cluster["file_mounts"].items():
        if remote.startswith("~/altgrad/"):
            assert (remote, (ROOT / local).exists()) == (f"~/altgrad/{local}", True)


@pytest.mark.parametrize("package", ["boto3", "aiohttp", "grpcio"])
def test_the_lock_has_what_the_autoscaler_and_the_dashboard_need(cluster: dict[str, Any], package: str) -> None:
    assert re.search(rf"^{package}==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert "head_setup_commands" not in cluster


def test_the_page_runs_the_file_as_it_is(cluster: dict[str, Any]) -> None:
    roles = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in cluster["available_node_types"].values()}
    assert all(role in PAGE for role in roles)
    assert TEXT.count("EDIT ") == 3
    (command,) = re.findall(r"ray exec cluster.yaml '(.*)'", TEXT)
    assert command in PAGE
    space = next(word for word in command.split() if word.endswith(".yaml"))
    assert (ROOT / Path(space).relative_to("altgrad")).exists()
    asked = yaml.safe_load((ROOT / Path(space).relative_to("altgrad")).read_text())["resources"]
    offered = [kind["resources"] for name, kind in cluster["available_node_types"].items() if name != "head"]
    assert all(asked["cpu"] <= one["CPU"] and asked["gpu"] <= one["GPU"] for one in offered)
