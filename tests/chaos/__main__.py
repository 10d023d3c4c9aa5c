"""``python -m tests.chaos``: faults drawn from a seed, one after another; exit code 1 where anything did not hold."""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.chaos.loop import FAULTS, Chaos
from tests.chaos.two_nodes import Nodes


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=FAULTS, help="draw from these")
    arguments = parser.parse_args()
    met: Counter[str] = Counter()
    broken = 0
    # Sockets of Ray live in it, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with Nodes(folder) as nodes:
        print(f"seed {arguments.seed}: an undisturbed run first", flush=True)
        chaos = Chaos(folder, arguments.seed, nodes, arguments.faults)
        for fault in chaos.without:
            print(f"without {fault}: this needs the right to mount (root)", flush=True)
        for cycle in chaos.cycles([None] * arguments.cycles):
            print(cycle, flush=True)
            met[cycle.fault] += 1
            broken += bool(cycle.broken)
    print(f"{sum(met.values())} cycles ({', '.join(f'{n} {fault}' for fault, n in met.items())}), {broken} broken")
    if broken:
        print(f"what broke is in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
