"""A sweep's folder with everything that a report tells: curves, flips, ranks, warnings, stops, an audit, versions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from results.synthetic_sweep import Sweep

from orchestrator.results.store import ChunkWriter, Store

STEPS, REPORT, CHECK = 200, 20, 50
MATRICES = ("h.0.attn.c_attn", "h.2.mlp.c_proj", "h.10.mlp.c_proj")
#: Elements of each matrix.
ELEMENTS = 1000
BASE = {"fp32": 2.0, "E4M3": 2.1, "E5M2": 2.2, "E7M0": 2.9}
#: A search space that is longer than a window.
SPACE = "name: study\nparameters:\n" + "".join(f"  p{i}: {{value: {i}}}\n" for i in range(100))
#: Seconds that every pack takes, and tokens of a step.
SECONDS, TOKENS = 60.0, 512


class Reported(Sweep):
    """A small study: formats under two optimizers at two learning rates, the worse of which is stopped half way."""

    def __init__(
        self,
        store: Store,
        formats: Sequence[str] = tuple(BASE),
        seeds: int = 3,
        text: str = "stdlib",
        gain: float = 0.03,
    ) -> None:
        super().__init__(store)
        self._gain = gain
        self.plan["name"] = self.plan["description"] = "A study of formats"
        self.plan["corpus"] |= {"corpus": text, "hash": "c0ffee" * 10}
        early = {"type": "asha", "scope": "cell"}
        self.plan["space"] = {"early_terminate": early, "resources": {"cpu": 2.0, "gpu": 0.0}}
        versions = {"altgrad": "0.1.0", "python": "3.11.7", "commit": "abc1234"}
        started = {"event": "sweep_started", "command": ["altgrad", "sweep", "a study.yaml"], "versions": versions}
        self.journal.append(started)
        store.write_bytes("sweep.yaml", SPACE.encode())
        for name in formats:
            for optimizer in ("adamw", "manifold_adamw"):
                self._cell(name, optimizer, seeds)

    def _cell(self, name: str, optimizer: str, seeds: int) -> None:
        control = name == "fp32" and optimizer == "adamw"
        gain = 0.0 if optimizer == "adamw" else -self._gain
        for lr in (0.001, 0.01):
            pack = self.add_pack(seeds, lr=lr, steps=STEPS, control=control, format=name, optimizer=optimizer)
            for lane in pack["lanes"]:
                lane["config"] |= {"batch_size": 8, "model": {"block_size": 64}}
            if not control:
                controls = {each["nuisance"]["lr"]: each["pack"] for each in self.plan["packs"] if each["control"]}
                pack["control_pack"] = controls.get(lr)
            self.save()
            stopped = lr == 0.01
            self._train(pack, BASE.get(name, 2.5) + gain + 0.3 * stopped, STEPS // 2 if stopped else STEPS)

    def _train(self, pack: dict[str, Any], level: float, last: int) -> None:
        """Falls from 5 to ``level`` and some hundredths at the last planned step; E7M0 loses its ranks."""
        writer = ChunkWriter(self.store, pack["pack"], 1)
        self.journal.append({"event": "pack_started", "pack": pack["pack"], "attempt": 1})
        step = np.arange(1, last + 1)
        sick = pack["scientific"]["format"] == "E7M0"
        quantized = pack["scientific"]["format"] != "fp32"
        for lane in pack["lanes"]:
            loss = 5 + (level + 0.01 * self._order(pack, lane["config"]["seed"]) - 5) * step / STEPS
            counts = {"updates": np.full(last, 3000), "flips": np.full(last, 300), "oscillations": np.full(last, 30)}
            rows = {"key": [lane["key"]] * last, "step": step, "loss": loss + 0.5, "tokens": step * TOKENS}
            rows |= {"val_loss": np.where(step % REPORT == 0, loss, np.nan), "grad_norm": np.ones(last)}
            rows |= {**counts, "stall_ratio": np.linspace(0, 0.9, last)} if quantized else {}
            writer.append("steps", rows)
            self._ranks(writer, pack, lane["key"], last, 0.5 if sick else 1.0)
            message = f"val_loss 2.5 at step {last} is above 2.25, the cutoff"
            numbers = {"value": 2.5, "reference": 2.25, "message": message}
            self.end(pack, lane["key"], *(("completed", last) if last == STEPS else ("asha", last)), **numbers)
        record = {"event": "reported", "pack": pack["pack"], "attempt": 1, "step": last, "metrics": {}}
        self.journal.append({**record, "seconds": SECONDS})

    def _order(self, pack: dict[str, Any], seed: int) -> int:
        """Seeds fare the other way round under the second optimizer: paired differences vary."""
        return seed if pack["scientific"]["optimizer"] == "adamw" else len(pack["lanes"]) - 1 - seed

    def _ranks(self, writer: ChunkWriter, pack: dict[str, Any], key: str, last: int, health: float) -> None:
        quantized = pack["scientific"]["format"] != "fp32"
        checks = np.arange(CHECK, last + 1, CHECK)
        for matrix in MATRICES:
            n = len(checks)
            ranks = (40.0 - checks / 10) * health ** (checks / STEPS)
            rows = {"key": [key] * n, "step": checks, "matrix": [matrix] * n, "effective_rank": ranks}
            rows |= {"elements": [ELEMENTS] * n, "flips": [100] * n if quantized else [None] * n}
            writer.append("layers", rows)
        if health < 1 and last == STEPS:
            warning = {"key": [key], "step": [STEPS], "kind": ["rank_warning"], "matrix": [MATRICES[-1]]}
            writer.append("events", {**warning, "message": ["effective rank is half of the control's"]})
