"""What Ray Tune places. The driver names it without loading PyTorch, which only its worker needs."""

from collections.abc import Mapping
from typing import Any


def run_pack(config: Mapping[str, Any]) -> None:
    """Train one pack of a sweep, see `orchestrator.sweep.trial.run_pack`."""
    from orchestrator.sweep import trial

    trial.run_pack(config)
