"""Checkpoints: safetensors and JSON, written aside and renamed, verified by hash when read."""

import hashlib
import json
import os
import shutil
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
    facts = {"step": checkpoint.step, "keys": list(checkpoint.keys), "extra": checkpoint.extra}
    return {_TENSORS: data, _FACTS: json.dumps(facts | {"sha256": _digest(data, facts)}).encode()}


def from_files(files: Mapping[str, bytes]) -> Checkpoint:
    """The checkpoint in a set of files.

    Raises:
        CheckpointError: a file is missing, or one is not what was written.
    """
    damaged = (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError)
    try:
        data, facts = files[_TENSORS], json.loads(files[_FACTS])
        if facts.pop("sha256") != _digest(data, facts):
            raise CheckpointError("damaged checkpoint: its content is not what was written")
        tensors = safetensors.torch.load(data)
        return Checkpoint(facts["step"], tuple(facts["keys"]), tensors, facts["extra"])
    except (*damaged, safetensors.SafetensorError) as error:
        raise CheckpointError(f"incomplete or damaged checkpoint: {error!r}") from error


def _digest(data: bytes, facts: Mapping[str, Any]) -> str:
    """sha256 over the tensors and, as JSON, everything else."""
    return hashlib.sha256(data + json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/checkpoint-<step>`` so that it is either whole or not there; an older one is replaced."""
    final = folder / f"checkpoint-{checkpoint.step:08d}"
    aside = folder / f".{final.name}.tmp"
    aside.mkdir(parents=True, exist_ok=True)
    for name, data in to_files(checkpoint).items():
        with (aside / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
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
