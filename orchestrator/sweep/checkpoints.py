"""Which checkpoint of a pack is good, and how many are kept."""

from collections.abc import Collection
from typing import NamedTuple

from altgrad.training.checkpoint import Checkpoint, CheckpointError, from_files, to_files
from orchestrator.results.store import Store
from orchestrator.sweep.checkpoint_folders import checkpoint_files, complete_checkpoints

#: Checkpoints kept of each pack: the newest, and one to fall back on.
KEPT = 2


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
    kept = [other for _, other in complete_checkpoints(store, pack) if other not in damaged][:KEPT]
    for old in {match[1] for match in checkpoint_files(store, pack)}.difference(kept):
        store.delete(old)


def latest_checkpoint(store: Store, pack: str, before: int | None = None) -> Latest:
    """The newest checkpoint that is whole, of steps under ``before``.

    Its content is held against its hash, and nothing of it is executed.
    """
    damaged: dict[str, str] = {}
    for step, folder in complete_checkpoints(store, pack):
        if before is not None and step >= before:
            continue
        try:
            files = {path.rsplit("/", 1)[1]: store.read_bytes(path) for path in store.list(folder)}
            return Latest(from_files(files), damaged)
        except (CheckpointError, OSError) as error:
            damaged[folder] = str(error)
    return Latest(None, damaged)
