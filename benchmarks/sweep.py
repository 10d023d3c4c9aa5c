"""What a sweep costs beside plain Ray Tune, and beside its training alone; or with trials that do nothing.

The same trials in three ways on this machine, one after another, each in fresh processes: one by one under plain Ray
Tune (`plain_tune.py`); through the altgrad command; and without Ray, the packs of the sweep in as many warm processes
as packs fit on the machine. This last is run right before the command and right after it, because their difference is
wanted and a shared machine changes its pace. Nothing is stopped early on any side.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arguments import positive
from benchmarks.figures import show

ROOT = Path(__file__).parents[1]
#: No trial ends before its last step, on our side either.
NO_STOPPING = [
    "early_terminate.type=none",
    "early_terminate.rank_collapse_patience=1000000",
    "early_terminate.stall_patience=1000000",
]
#: A trial of one step of the smallest model there is, in a pack of its own.
NOOP = """\
name: noop
parameters:
  lr: {{distribution: uniform, min: 1e-3, max: 1e-2, role: nuisance}}
method: random
run_cap: {trials}
control: {{format: fp32, optimizer: adamw, storage: master, layers: all}}
run:
  format: fp32
  optimizer: adamw
  model: {{n_layer: 1, n_head: 1, n_embd: 16, block_size: 8}}
  batch_size: 1
  steps: 1
  warmup_steps: 1
  report_interval: 1
  eval_batches: 1
wandb: {{mode: disabled}}
"""
#: Seconds between two looks at a process's memory.
_LOOK = 0.5


def altgrad(*arguments: object) -> list[str]:
    """The command as this interpreter runs it."""
    return [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This one, without what would point a side at a cluster or a W&B account."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "RAY"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def run(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """Wall time of a command, and what it printed.

    Raises:
        SystemExit: it fails.
    """
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began, done.stdout


def train_packs(packs: Sequence[Sequence[Mapping[str, Any]]], corpus: Mapping[str, Any], threads: int) -> float:
    """Seconds that packs of lanes take one after another in this process, imports and corpus not counted."""
    import torch

    from altgrad.training.config import RunConfig
    from altgrad.training.loop import train
    from orchestrator.corpus import corpus_of

    torch.set_num_threads(threads)
    configs = [[RunConfig.from_dict({**lane, "corpus": corpus["corpus"]}) for lane in lanes] for lanes in packs]
    text = corpus_of(configs[0][0])
    began = time.perf_counter()
    for lanes in configs:
        train(lanes, lambda step, rows: None, corpus=text)
    return time.perf_counter() - began


def training_alone(plan: Mapping[str, Any]) -> float:
    """Seconds of a plan's training without Ray: packs dealt to as many processes as can run at once, the slowest."""
    packs = [[lane["config"] for lane in pack["lanes"]] for pack in plan["packs"]]
    cpu = plan["space"]["resources"]["cpu"]
    parallel = max(1, min(len(packs), int((os.cpu_count() or 1) / cpu)))
    shares = [(packs[i::parallel], plan["corpus"], max(1, int(cpu))) for i in range(parallel)]
    with multiprocessing.get_context("spawn").Pool(parallel) as pool:
        return max(pool.starmap(train_packs, shares, chunksize=1))


def compare(space: Path, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run all three sides, and hold them against each other."""
    changes = [*overrides, *NO_STOPPING]
    _, planned = run(altgrad("plan", space, *changes, "--json"), folder)
    (folder / "plan.json").write_text(planned)
    plan = json.loads(planned)
    trials = sum(len(pack["lanes"]) for pack in plan["packs"])
    run([sys.executable, "-c", "import ray.tune, torch"], folder)  # the first side reads no libraries from a cold disk
    stock, _ = run([sys.executable, "-m", "benchmarks.plain_tune", "plan.json", "stock"], folder)
    before = training_alone(plan)
    ours, _ = run(altgrad("sweep", space, *changes, "--storage", folder / "ours"), folder)
    after = training_alone(plan)
    alone = (before + after) / 2
    return {
        "stock_over_ours": stock / ours,
        "orchestration_s_per_trial": (ours - alone) / trials,
        "ours_s": ours,
        "stock_s": stock,
        "training_s": alone,
        "training_runs_s": {"before": before, "after": after},
        "trials": trials,
        "packs": len(plan["packs"]),
        "overrides": list(overrides),
    }


def noop(trials: int, folder: Path) -> dict[str, Any]:
    """A sweep whose trials do next to nothing, its driver's memory watched (Linux)."""
    (folder / "noop.yaml").write_text(NOOP.format(trials=trials))
    journal = folder / "runs/noop/journal.jsonl"
    seen: list[tuple[int, float]] = []
    began = time.perf_counter()
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            altgrad("sweep", "noop.yaml"), cwd=folder, env=environment(), stdout=said, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            ended = journal.read_text().count('"lane_ended"') if journal.exists() else 0
            seen.append((ended, resident_mib(process.pid)))
            time.sleep(_LOOK)
    wall = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"the sweep ended with {process.returncode}:\n{(folder / 'said.txt').read_text()[-3000:]}")
    return {
        "noop_trials": trials,
        "noop_wall_s": wall,
        "noop_s_per_trial": wall / trials,
        "driver_peak_mib": max(memory for _, memory in seen),
        "driver_growth_kib_per_trial": growth(seen) * 1024,
    }


def growth(seen: Sequence[tuple[int, float]]) -> float:
    """Slope of memory over ended trials while trials end, the first fifth left out; 0.0 where too little was seen.

    The median slope over all pairs of looks (Theil and Sen), which a few jumps do not move.
    """
    last = max((ended for ended, _ in seen), default=0)
    late = [(ended, memory) for ended, memory in seen if last / 5 <= ended < last]
    slopes = [(m2 - m1) / (n2 - n1) for i, (n1, m1) in enumerate(late) for n2, m2 in late[i + 1 :] if n2 > n1]
    return statistics.median(slopes) if slopes else 0.0


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM, in MiB; 0.0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value, as altgrad sweep takes them: steps=40 seed=[1]")
    parser.add_argument("--space", type=Path, default=ROOT / "search_spaces/quickstart.yaml", help="(quickstart)")
    parser.add_argument("--noop", type=positive, metavar="N", help="instead: N trials that do nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args(arguments)
    load = float(np.round(os.getloadavg()[0], 2))
    with tempfile.TemporaryDirectory(prefix="altgrad-") as name:
        folder = Path(name)
        space = options.space.absolute()
        result = noop(options.noop, folder) if options.noop else compare(space, options.overrides, folder)
    show({**result, "load_average": load}, options.json)


if __name__ == "__main__":
    main()
