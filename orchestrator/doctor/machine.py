"""Python, PyTorch, what compiles, and Weights & Biases."""

import importlib.metadata
import os
import platform
import sys

from orchestrator.doctor.finding import Finding

_OLDEST_PYTHON = (3, 11)


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
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} with {device.total_memory / 2**30:.0f} GiB" for device in devices)
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


def wandb() -> Finding:
    """The mode that ``wandb.mode: auto`` would be here."""
    from orchestrator.sweep.tracking import choose_mode

    try:
        mode = choose_mode("auto", os.environ)
    except ValueError as error:
        return Finding("wandb", "fail", str(error), "unset WANDB_MODE, or set it to online, offline or disabled")
    found = {
        "online": "online: there is a key",
        "offline": "offline, in the run's folder: `wandb sync` uploads it; `wandb login` stores a key",
        "disabled": "disabled by WANDB_MODE",
    }[mode]
    return Finding("wandb", "ok", f"{importlib.metadata.version('wandb')}, {found}")
