"""Checkpoints: safetensors and JSON, written aside and renamed, verified by hash when read."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

_TENSORS, _FACTS = "state.safetensors", "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that is incomplete or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step; data and randomness are functions of seed and step and need no state."""

    #: Steps done.
    step: int
    #: The lanes still alive, in order.
    keys: tuple[str, ...]
    #: Every tensor of the state, lanes first.
    tensors: dict[str, Tensor]
    #: What the listener wants back, as plain data.
    extra: dict[str, Any] = field(default_factory=dict)


def to_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint by name, in the order to write them: the last one makes it complete."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in checkpoint.tensors.items()}
    data = safetensors.torch.save(tensors)
    facts = {
        "step": checkpoint.step,
        "keys": list(checkpoint.keys),
        "sha256": hashlib.sha256(data).hexdigest(),
        "extra": checkpoint.extra,
    }
    return {_TENSORS: data, _FACTS: json.dumps(facts).encode()}


def from_files(files: Mapping[str, bytes]) -> Checkpoint:
    """The checkpoint in a set of files.

    Raises:
        CheckpointError: a file is missing, or the tensors are not those that were written.
    """
    try:
        data, facts = files[_TENSORS], json.loads(files[_FACTS])
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise CheckpointError(f"{_TENSORS} is not what was written")
        tensors = safetensors.torch.load(data)
        return Checkpoint(facts["step"], tuple(facts["keys"]), tensors, facts["extra"])
    except (KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"incomplete or damaged checkpoint: {error!r}") from error


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/checkpoint-<step>`` so that it is either whole or not there."""
    final = folder / f"checkpoint-{checkpoint.step:08d}"
    aside = folder / f".{final.name}.tmp"
    aside.mkdir(parents=True, exist_ok=True)
    for name, data in to_files(checkpoint).items():
        with (aside / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if not final.exists():
        aside.rename(final)
    return final


def read(folder: Path) -> Checkpoint:
    """Read what `write` wrote.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    try:
        return from_files({name: (folder / name).read_bytes() for name in (_TENSORS, _FACTS)})
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror}") from error
