"""A Ray cluster of several nodes on this machine: `python -m tests.cluster.nodes FOLDER WORKERS DASHBOARD_PORT`.

It runs in a process of its own, so that the test's process stays free of Ray. It prints one JSON object for the start
and one for each command that it reads: `add` starts a node, and `kill PID` kills the node whose raylet that is, as a
machine dies that loses its power. It ends with its input."""

import json
import sys
from typing import Any

import psutil
from ray._private import ray_constants
from ray.cluster_utils import Cluster


def raylet(node: Any) -> int:
    """Return the process id of a node's raylet, by which its workers can be told."""
    (process,) = node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    return int(process.process.pid)


def kill(node: Any) -> None:
    """Kill a node's processes at once, the replicas that run there first."""
    parent = psutil.Process(raylet(node))
    for each in (*parent.children(recursive=True), parent):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


def main() -> None:
    folder, workers = sys.argv[1], int(sys.argv[2])
    common = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args=common
        | {
            "temp_dir": folder,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": int(sys.argv[3]),
        },
    )
    nodes = {}
    head = raylet(cluster.head_node)

    def add() -> int:
        node = cluster.add_node(**common)
        nodes[raylet(node)] = node
        return raylet(node)

    def say(**fields: Any) -> None:
        print(json.dumps(fields), flush=True)

    for _ in range(workers):
        add()
    say(address=cluster.address, head=head, workers=list(nodes))
    for line in sys.stdin:
        command, *of = line.split()
        if command == "add":
            say(added=add())
        else:
            kill(nodes.pop(int(of[0])))
            say(killed=int(of[0]))
    cluster.shutdown()


if __name__ == "__main__":
    main()
