"""Where a pack's checkpoints lie, as their paths say it."""

import re
from collections.abc import Iterator

from orchestrator.results.store import Store

#: A file in the run's folder: packs that see it at a report save a checkpoint.
ASKED = "checkpoint_now"
_FOLDER = re.compile(r"(.*/attempt-(\d+)/checkpoint-(\d+))/([^/]+)")
#: The file that is written last.
_LAST = "checkpoint.json"


def latest_step(store: Store, pack: str) -> int:
    """The step of the newest complete checkpoint, 0 where there is none. Its content is not looked at."""
    return next((step for step, _ in complete_checkpoints(store, pack)), 0)


def complete_checkpoints(store: Store, pack: str) -> Iterator[tuple[int, str]]:
    """Step and folder of every complete checkpoint, newest first: the latest attempt's, which may have gone back."""
    found = [(int(match[2]), int(match[3]), match[1]) for match in checkpoint_files(store, pack) if match[4] == _LAST]
    yield from ((step, folder) for _, step, folder in sorted(found, reverse=True))


def checkpoint_files(store: Store, pack: str) -> list[re.Match[str]]:
    """The path of every file of a checkpoint."""
    return [match for path in store.list(f"packs/{pack}") if (match := _FOLDER.fullmatch(path))]
