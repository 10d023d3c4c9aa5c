"""A Ray cluster of two nodes on this machine, in a process of its own: a head, and a second node that can be lost.

``python -m tests.chaos.two_nodes`` prints the address, then answers each line of its input: ``kill`` ends every process
of the second node at once, ``add`` brings one up. It lets go of everything when its input ends.
"""

import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.sweeps import PATIENCE, ROOT, environment

_NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}


class Nodes:
    """The cluster as others see it; a context manager."""

    def __init__(self, folder: Path) -> None:
        """``folder``: for Ray's logs and sockets, with a short path."""
        with (folder / "nodes.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.two_nodes"],
                cwd=ROOT,
                env=environment(folder) | {"RAY_TMPDIR": str(folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        #: The process that all others of the cluster descend from.
        self.pid = self._process.pid
        #: What ``--address`` takes.
        self.address = self._answer()

    def lose_second(self) -> None:
        """SIGKILL to every process of the second node."""
        self._ask("kill")

    def add_second(self) -> None:
        """Bring up a second node."""
        self._ask("add")

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=PATIENCE)

    def _ask(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, f"the cluster's process ended: {self._process.wait()}"
        return answer


def _serve() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    second = cluster.add_node(**_NODE)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
        else:
            second = cluster.add_node(**_NODE)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve()
