"""Three Ray nodes on one machine, as a process: it says where they are, and loses one on request.

Run with the environment that the nodes are to have. A line of JSON tells the address; a line on its input kills one
worker node as a crash would; the end of its input ends them all.
"""

import json
import sys

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 * 1024 * 1024
WORKERS = 2


def main(dashboard: int, client: int, agent: int) -> None:
    """Serve until the input ends.

    Args:
        dashboard: port of the dashboard, which takes jobs.
        client: port of Ray's client server.
        agent: port of the head's dashboard agent.
    """
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    head = {
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": dashboard,
        "ray_client_server_port": client,
        "dashboard_agent_listen_port": agent,
    }
    cluster = Cluster(initialize_head=True, head_node_args=node | head)
    workers = [cluster.add_node(**node) for _ in range(WORKERS)]
    print(json.dumps({"address": cluster.address}), flush=True)
    for _ in sys.stdin:
        cluster.remove_node(workers.pop(), allow_graceful=False)
        print(json.dumps({"left": len(workers) + 1}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
