"""Writes on a local disk that survive a crash: of the program in the middle of them, of the machine after them."""

import os
import secrets
from pathlib import Path

#: A file whose name ends so is still being written.
TEMPORARY_SUFFIX = ".tmp"


def write(target: Path, data: bytes) -> None:
    """Make ``data`` the content of ``target``, whole or not at all, even if the machine goes down."""
    _make_folder(target.parent)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def append_line(target: Path, line: bytes) -> None:
    """Append a line and sync it, on a fresh line where an earlier writer died in the middle of one."""
    is_new = not target.exists()
    _make_folder(target.parent)
    with target.open("ab+") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        _sync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Without this a crash of the machine may forget a file's name though its content was synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
