"""Which program runs a sweep, and on what: for whoever wants to run it again."""

import platform
import runpy
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray

import altgrad
from orchestrator.space import Resources


def versions() -> dict[str, str]:
    """Versions by name, and the ``commit`` where the program is a checkout, with ``-dirty`` where that was changed."""
    found = {
        "altgrad": altgrad.__version__,
        "python": platform.python_version(),
        "torch": _torch_version(),
        "ray": ray.__version__,
    }
    commit = _commit(Path(altgrad.__file__).parent)
    return found | {"commit": commit} if commit else found


def _torch_version() -> str:
    """As PyTorch says it itself, its build included, without loading it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("no module named torch", name="torch")
    return str(runpy.run_path(str(Path(spec.origin).with_name("version.py")))["__version__"])


def settled_resources(resources: Resources) -> dict[str, Any]:
    """What each pack holds: ``cpu`` cores and ``gpu`` devices, and which ``device`` it trains on. Needs Ray."""
    kinds = [name.partition(":")[2] for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
    device = ", ".join(sorted(kinds)) or "GPU"
    return {"cpu": resources.cpu, "gpu": resources.gpu, "device": device if resources.gpu else "CPU"}


def _commit(package: Path) -> str | None:
    """The commit that a package's folder is of; None where it is not under git, or git is not there."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An environment may lie inside the checkout of something else.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
