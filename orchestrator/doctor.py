"""Is this machine fit to run a sweep? Each question is one function that looks and says what it found."""

import importlib.metadata
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_GIB = 2**30
_OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    #: What was looked at.
    subject: str
    #: ``fail`` means that sweeps cannot run; ``warn`` that they run worse than they could.
    level: Literal["ok", "warn", "fail"]
    found: str
    #: What to do about it; empty where all is well.
    advice: str = ""


def examine(storage: Path) -> list[Finding]:
    """Everything there is to know before a sweep is started here, with its runs kept under ``storage``."""
    checks: tuple[Callable[[], Finding], ...] = (python, torch_and_devices, kernels, ray)
    return [*(check() for check in checks), writable(storage), disk(storage)]


def python() -> Finding:
    """The interpreter is one that altgrad supports."""
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("python", "fail", version, "install Python 3.11 or newer: make PYTHON=python3.11 ...")
    return Finding("python", "ok", version)


def torch_and_devices() -> Finding:
    """PyTorch, and where trials will train."""
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("torch", "ok", f"{torch.__version__}, {names}")
    return Finding("torch", "ok", f"{torch.__version__}, CPU with {torch.get_num_threads()} threads")


def kernels() -> Finding:
    """What runs `altgrad.quantization.fused` on the device that trials will train on."""
    import torch

    from altgrad.quantization.fused import engine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = engine(device)
    if found.name == "compiled":
        return Finding("kernels", "ok", f"compiled for {device}")
    missing = "a C++ compiler (g++ or clang++)" if device == "cpu" else "Triton and a C compiler"
    advice = f"results are the same, only slower; torch.compile needs {missing}"
    return Finding("kernels", "warn", f"eager on {device}: {found.reason}", advice)


def ray() -> Finding:
    """Ray is there. It is not started for this."""
    return Finding("ray", "ok", importlib.metadata.version("ray"))


def writable(storage: Path) -> Finding:
    """Runs can be kept where they are to be kept."""
    nearest = _nearest_folder(storage)
    try:
        with tempfile.NamedTemporaryFile(dir=nearest):
            return Finding("storage", "ok", str(storage))
    except OSError as error:
        return Finding("storage", "fail", f"{nearest}: {error.strerror}", "choose another place: --storage FOLDER")


def disk(storage: Path) -> Finding:
    """There is room for what sweeps write."""
    nearest = _nearest_folder(storage)
    free = shutil.disk_usage(nearest).free / _GIB
    found = f"{free:.1f} GiB free"
    if free < 0.25:
        return Finding("disk", "fail", found, "make room: a small sweep writes about 100 MB, checkpoints included")
    if free < 5:
        return Finding("disk", "warn", found, "large sweeps write gigabytes of checkpoints")
    return Finding("disk", "ok", found)


def _nearest_folder(storage: Path) -> Path:
    """The folder itself, or the one in which it would be made."""
    return next(folder for folder in (storage, *storage.absolute().parents) if folder.exists())
