"""Where a pack's checkpoints lie, which one is good, and how many are kept."""

import logging
import re
from collections.abc import Iterator

from altgrad.training.checkpoint import Checkpoint, CheckpointError, from_files, to_files
from orchestrator.results.store import Store

logger = logging.getLogger(__name__)

#: Checkpoints kept of each pack: the newest, and one to fall back on.
KEPT = 2
_NAME = re.compile(r"/attempt-(\d+)/checkpoint-(\d+)/checkpoint\.json$")


def save_checkpoint(store: Store, pack: str, attempt: int, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, the file that makes it complete last, and delete those that are no longer needed."""
    folder = f"packs/{pack}/attempt-{attempt}/checkpoint-{checkpoint.step:08d}"
    for name, data in to_files(checkpoint).items():
        store.write_bytes(f"{folder}/{name}", data)
    for _, old in list(_complete(store, pack))[KEPT:]:
        store.delete(old)


def latest_checkpoint(store: Store, pack: str, before: int | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole, of steps under ``before``; damaged ones are passed over with a warning."""
    for step, folder in _complete(store, pack):
        if before is not None and step >= before:
            continue
        names = [path for path in store.list(folder) if not path.endswith(".tmp")]
        try:
            return from_files({path.rsplit("/", 1)[1]: store.read_bytes(path) for path in names})
        except CheckpointError as error:
            logger.warning("%s is passed over: %s", folder, error)
    return None


def latest_step(store: Store, pack: str) -> int:
    """The step of the newest complete checkpoint, 0 where there is none."""
    return next((step for step, _ in _complete(store, pack)), 0)


def _complete(store: Store, pack: str) -> Iterator[tuple[int, str]]:
    """Step and folder of every complete checkpoint, newest first: the latest attempt's, which may have gone back."""
    paths = store.list(f"packs/{pack}")
    found = [(int(name[1]), int(name[2]), path.rsplit("/", 1)[0]) for path in paths if (name := _NAME.search(path))]
    yield from ((step, folder) for _, step, folder in sorted(found, reverse=True))
