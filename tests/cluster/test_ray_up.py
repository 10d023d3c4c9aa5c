"""The shipped cluster.yaml, up and down on this machine: its mounts, commands and token, with a node of the test's own.

Of the file only what says where nodes come from is swapped: the provider, and the ports that others may have. The node
is a home of its own behind an ssh server of its own. What its commands install is there already: `pip` only takes note,
and `ray stop` ends the one Ray that was started there.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from places import free_ports, ray_environment
from sweeps import PATIENCE, ROOT

from orchestrator.results.queries import query
from orchestrator.results.store import Store

MISSING = [program for program in ("ssh", "rsync", "bash", "ps") if shutil.which(program) is None]

RAY = """\
#!/bin/bash
# Starts Ray so that it can be ended by itself: the real `ray stop` ends every Ray process of the machine.
real=({python} -P -m ray.scripts.scripts)
pid=$HOME/ray.pid log=$HOME/ray.log
alive() {{ case $(ps -o stat= -p "$(cat "$pid")") in "" | Z*) return 1 ;; esac }}
case $1 in
  start)
    echo "$RAY_AUTH_MODE" > ~/ray.mode
    setsid "${{real[@]}}" "$@" --block > "$log" 2>&1 < /dev/null &
    echo $! > "$pid"
    until grep -q 'Ray runtime started' "$log"; do
      alive || {{ cat "$log"; exit 1; }}
      sleep 0.1
    done ;;
  stop)
    test -f "$pid" || exit 0
    kill "$(cat "$pid")"
    while alive; do sleep 0.1; done
    rm "$pid" ;;
  *) exec "${{real[@]}}" "$@" ;;
esac
"""
PIP = """\
#!/bin/bash
# Notes what would be installed, and that it is there.
for word in "$@"; do
  case $word in "$HOME"/*) test -e "$word" || {{ echo "no $word"; exit 1; }} ;; esac
done
echo "$@" >> ~/pip.log
"""
ALTGRAD = """\
#!/bin/bash
exec {python} -P -m orchestrator.cli "$@"
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    #: The home of the machine that `ray up` was typed on, and that of the node.
    home: Path
    node: Path
    file: Path
    env: dict[str, str]

    def ray(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's cluster launcher, typed in the checkout."""
        name = ["--cluster-name", self.file.stem]
        typed = [sys.executable, "-m", "ray.scripts.scripts", command, *name, str(self.file), *words]
        return subprocess.run(
            typed,
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=shlex.quote(sys.executable)))
    path.chmod(0o755)


def here(ssh_port: int, relay: Path) -> str:
    """The cluster file with a provider that is this machine."""
    program(relay, f"#!/bin/bash\nexec 3<> /dev/tcp/127.0.0.1/{ssh_port}\ncat <&3 &\nexec cat >&3\n")
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for key in ("available_node_types", "head_node_type", "max_workers"):
        del config[key]
    config["provider"] = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    config["auth"]["ssh_proxy_command"] = str(relay)
    gcs, client, agent = free_ports(3)
    start = config["head_start_ray_commands"]
    assert start[1].count("--port=6379") == 1
    ports = f"--port={gcs} --ray-client-server-port={client} --dashboard-agent-listen-port={agent}"
    size = "--include-dashboard=false --num-cpus=1 --object-store-memory=80000000"
    start[1] = start[1].replace("--port=6379", f"{ports} {size}")
    return yaml.safe_dump(config)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray up`, and `ray down` if a test has not done so."""
    if MISSING:
        pytest.skip(
            f"ray up needs {' and '.join(MISSING)} on this machine (apt-get install openssh-client rsync procps)"
        )
    node, home = tmp_path_factory.mktemp("node"), tmp_path_factory.mktemp("home")
    login = ["bash", "--login", "-c", "command -v ray"]
    bare = {"HOME": str(node), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    if found := subprocess.run(login, env=bare, capture_output=True, text=True, check=False).stdout:
        pytest.skip(f"login shells find {found.strip()}: it could stop the Ray of others here")
    for name, text in {"ray": RAY, "pip": PIP, "altgrad": ALTGRAD}.items():
        program(node / "altgrad-venv" / "bin" / name, text)
    (node / ".bashrc").touch()
    with ray_environment(home) as env:
        here_only = {name: env[name] for name in ("RAY_TMPDIR", "OMP_NUM_THREADS", "COLUMNS", "NO_COLOR")}
        path = os.pathsep.join(filter(None, [str(node / "altgrad"), os.environ.get("PYTHONPATH")]))
        served = bare | here_only | {"PYTHONPATH": path, "TMPDIR": str(node)}
        server = [sys.executable, str(Path(__file__).with_name("sshd.py"))]
        with (
            (home / "sshd.log").open("w") as log,
            subprocess.Popen(server, env=served, stdout=subprocess.PIPE, stderr=log, text=True) as sshd,
        ):
            try:
                assert sshd.stdout is not None
                port = int(sshd.stdout.readline() or (home / "sshd.log").read_text())
                file = home / f"altgrad-{port}.yaml"
                file.write_text(here(port, home / "relay"))
                running = Cluster(home, node, file, env | {"TMPDIR": str(home)})
                up = running.ray("up", "--yes")
                assert up.returncode == 0, up.stdout + up.stderr
                yield running
            finally:
                subprocess.run([node / "altgrad-venv/bin/ray", "stop"], env=served, check=True)
                sshd.terminate()


def test_the_node_has_the_project_the_token_and_what_pip_was_to_install(cluster: Cluster) -> None:
    for part in (
        "pyproject.toml",
        "requirements.lock",
        "README.md",
        "search_spaces/matrix.yaml",
        "altgrad/__init__.py",
    ):
        assert (cluster.node / "altgrad" / part).read_bytes() == (ROOT / part).read_bytes()
    assert not list((cluster.node / "altgrad").rglob("__pycache__/*.pyc"))
    token = cluster.node / ".ray" / "auth_token"
    assert token.read_text() == (cluster.home / ".ray" / "auth_token").read_text()
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (cluster.node / "ray.mode").read_text() == "token\n"
    assert (cluster.node / "pip.log").read_text().splitlines() == [
        f"install --quiet --require-hashes -r {cluster.node}/altgrad/requirements.lock",
        f"install --quiet --no-deps --no-build-isolation {cluster.node}/altgrad",
    ]


def test_a_sweep_is_run_there_and_its_results_come_back(cluster: Cluster, space: Path, undisturbed: Path) -> None:
    sent = cluster.ray("rsync-up", str(space), "~/space.yaml")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    sweep = "altgrad sweep space.yaml 'format=[fp32]' 'storage=[master]' 'exclude=[]' --address auto"
    done = cluster.ray("exec", sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Trials: 1 completed" in done.stdout
    back = cluster.ray("rsync-down", "~/runs/small/", f"{cluster.home}/small")
    assert back.returncode == 0, back.stdout + back.stderr
    there, here = Store.open(cluster.home / "small"), Store.open(undisturbed)
    (control,) = query(there, "SELECT key FROM trials").to_pylist()
    rows = f"SELECT * EXCLUDE (pack, attempt) FROM layers WHERE key = '{control['key']}' ORDER BY ALL"
    assert query(there, rows).to_pylist() == query(here, rows).to_pylist() != []


def test_down_leaves_nothing_that_runs(cluster: Cluster) -> None:
    def processes() -> list[str]:
        listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if cluster.env["RAY_TMPDIR"] in line]

    assert any("raylet" in line for line in processes())
    down = cluster.ray("down", "--yes")
    assert down.returncode == 0, down.stdout + down.stderr
    assert processes() == []
