"""Builds a sweep's folder without training."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.results.journal import Journal
from orchestrator.results.store import ChunkWriter, Store


class Sweep:
    """Builds a sweep's folder pack by pack; every lane has a row of steps at each of ``report_steps``."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.journal = Journal(store)
        self.plan: dict[str, Any] = {
            "name": "synthetic",
            "description": "",
            "spec_hash": "0",
            "schema_version": 1,
            "corpus": {"corpus": "stdlib", "hash": "0", "tokens": 1000, "vocabulary": 256},
            "metric": {"name": "val_loss", "goal": "minimize"},
            "roles": {
                "format": "scientific",
                "optimizer": "scientific",
                "storage": "scientific",
                "lr": "nuisance",
                "seed": "replicate",
            },
            "packs": [],
            "excluded": [],
            "space": {"early_terminate": {"scope": "cell"}},
            "versions": {},
        }

    def save(self) -> None:
        self.store.write_bytes("plan.json", json.dumps(self.plan).encode())

    def add_pack(
        self,
        lanes: int = 1,
        *,
        lr: float = 0.001,
        steps: int = 400,
        control: bool = False,
        lane_values: dict[str, Sequence[Any]] | None = None,
        **scientific: Any,
    ) -> dict[str, Any]:
        """A planned pack; its lanes differ by seed, or by ``lane_values``."""
        number = len(self.plan["packs"])
        scientific = {"format": "E4M3", "optimizer": "adamw", "storage": "master", **scientific}
        base = {"layers": "all", **scientific, "lr": lr, "steps": steps}
        pack: dict[str, Any] = {
            "pack": f"p{number:03d}",
            "cell": " ".join(map(str, scientific.values())),
            "scientific": scientific,
            "nuisance": {"lr": lr},
            "control": control,
            "control_pack": None,
            "lanes": [],
        }
        for lane in range(lanes):
            own = {name: values[lane] for name, values in (lane_values or {}).items()}
            config = {**base, "seed": lane, **own}
            pack["lanes"].append({"key": f"k{number:03d}{lane}", "config": config})
        self.plan["packs"].append(pack)
        self.save()
        return pack

    def train(
        self,
        pack: dict[str, Any],
        values: Sequence[float | None],
        ends: Sequence[tuple[str, int] | None] | None = None,
        *,
        attempt: int = 1,
    ) -> None:
        """Write steps whose last validation losses are ``values`` and, in the journal, how each lane ended.

        A lane without an end is still running at step 100.
        """
        ends = ends if ends is not None else [("completed", 400)] * len(values)
        writer = ChunkWriter(self.store, pack["pack"], attempt)
        self.journal.append({"event": "pack_started", "pack": pack["pack"], "attempt": attempt})
        for lane, value, end in zip(pack["lanes"], values, ends, strict=True):
            last = end[1] if end else 100
            steps = np.arange(1, last + 1)
            val_loss = np.full(last, np.nan)
            val_loss[last // 2] = 9.0
            val_loss[-1] = np.nan if value is None else value
            loss = np.linspace(5.0, 1.0, last)
            writer.append("steps", {"key": [lane["key"]] * last, "step": steps, "loss": loss, "val_loss": val_loss})
            if end is not None:
                self.end(pack, lane["key"], *end)

    def audit(self, pack: dict[str, Any], key: str, reason: str, step: int) -> None:
        """The audit spares a lane that was to be stopped."""
        numbers = {"message": f"{reason}!", "value": 4.0, "reference": 3.0, "threshold": None}
        record = {"event": "lane_audited", "pack": pack["pack"], "key": key, "reason": reason, "step": step}
        self.journal.append({**record, **numbers})

    def end(self, pack: dict[str, Any], key: str, reason: str, step: int, **more: Any) -> None:
        numbers = {"message": f"{reason} at step {step}", "value": 1.0, "reference": None, "threshold": None, **more}
        record = {"event": "lane_ended", "pack": pack["pack"], "key": key, "reason": reason, "step": step}
        self.journal.append({**record, **numbers})
