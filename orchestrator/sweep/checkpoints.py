"""Where a pack's checkpoints lie, which one is good, and how many are kept."""

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from altgrad.training.checkpoint import Checkpoint, CheckpointError, from_files, to_files
from orchestrator.results.store import Store

#: Checkpoints kept of each pack: the newest, and one to fall back on.
KEPT = 2
#: A file in the run's folder: packs that see it at a report save a checkpoint.
ASKED = "checkpoint_now"
_FOLDER = re.compile(r"(.*/attempt-(\d+)/checkpoint-(\d+))/([^/]+)")
#: The file that is written last.
_LAST = "checkpoint.json"


class Latest(NamedTuple):
    """The checkpoint to go on from, and those that were passed over for it."""

    #: None where there is none that is whole.
    checkpoint: Checkpoint | None
    #: What is wrong with each newer one, by its folder.
    damaged: dict[str, str]


def save_checkpoint(
    store: Store, pack: str, attempt: int, checkpoint: Checkpoint, damaged: Collection[str] = ()
) -> None:
    """Write a checkpoint, the file that makes it complete last, and delete those that are no longer needed.

    Args:
        store: The run's folder.
        pack: Whose checkpoint it is.
        attempt: The attempt that came to it.
        checkpoint: What to write.
        damaged: Folders of checkpoints that were found damaged: they go, and do not count as something to fall back on.
    """
    folder = f"packs/{pack}/attempt-{attempt}/checkpoint-{checkpoint.step:08d}"
    for name, data in to_files(checkpoint).items():
        store.write_bytes(f"{folder}/{name}", data)
    kept = [other for _, other in _complete(store, pack) if other not in damaged][:KEPT]
    for old in {match[1] for match in _files(store, pack)}.difference(kept):
        store.delete(old)


def latest_checkpoint(store: Store, pack: str, before: int | None = None) -> Latest:
    """The newest checkpoint that is whole, of steps under ``before``.

    Its content is held against its hash, and nothing of it is executed.
    """
    damaged: dict[str, str] = {}
    for step, folder in _complete(store, pack):
        if before is not None and step >= before:
            continue
        try:
            files = {path.rsplit("/", 1)[1]: store.read_bytes(path) for path in store.list(folder)}
            return Latest(from_files(files), damaged)
        except (CheckpointError, OSError) as error:
            damaged[folder] = str(error)
    return Latest(None, damaged)


def latest_step(store: Store, pack: str) -> int:
    """The step of the newest complete checkpoint, 0 where there is none. Its content is not looked at."""
    return next((step for step, _ in _complete(store, pack)), 0)


def _complete(store: Store, pack: str) -> Iterator[tuple[int, str]]:
    """Step and folder of every complete checkpoint, newest first: the latest attempt's, which may have gone back."""
    found = [(int(match[2]), int(match[3]), match[1]) for match in _files(store, pack) if match[4] == _LAST]
    yield from ((step, folder) for _, step, folder in sorted(found, reverse=True))


def _files(store: Store, pack: str) -> list[re.Match[str]]:
    """The path of every file of a checkpoint."""
    return [match for path in store.list(f"packs/{pack}") if (match := _FOLDER.fullmatch(path))]
