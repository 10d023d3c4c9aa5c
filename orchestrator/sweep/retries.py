"""What is done about an attempt that failed: pure decisions from the words of its error and what failed before.

A worker says of its own failures what kind they are (`words_of`). What it did not live to say is a loss, of the worker
or of its node.
"""

import errno
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

#: ``lost``: the worker or its node went. ``application``: the program raised an error. ``gpu_memory``,
#: ``host_memory``, ``disk_full``: there is no more of it.
Kind = Literal["lost", "application", "gpu_memory", "host_memory", "disk_full"]
#: ``retry_alone``: with a node to itself. ``end_sweep``: every pack would fail of it.
Action = Literal["retry", "retry_alone", "give_up", "end_sweep"]

#: What helps against a kind of failure that trying again does not help against.
ADVICE: dict[Kind, str] = {
    "gpu_memory": "the GPU's memory is full: train fewer lanes in a pack, a smaller batch_size, or raise resources.gpu",
    "host_memory": "the machine's memory is full though the pack ran alone: train fewer lanes in a pack or a smaller "
    "batch_size",
}

_OWN_WORDS = re.compile(rf"PackError: ({'|'.join(get_args(Kind))}): (.*)")
#: The frame of a task that raised: the worker lived to tell.
_TASK = re.compile(r"ray::[\w.]+\(\)")
_KILLED_FOR_MEMORY = re.compile(r"killed due to the node running low on memory")
_NODE_DIED = "its node has died"
_MODULES = re.compile(r"^(\w+\.)+(?=\w+(: |$))")
#: Before each error, as Tune writes them down one after another; and in it, the worker that is no more.
_HEADING = "Failure # "
_DEAD = re.compile(r"^\s*actor_id: (\w+)$", re.MULTILINE)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class PackError(RuntimeError):
    """An error of a pack, raised on its worker with `words_of` as its text: the driver reads the kind from them."""


class Failure(NamedTuple):
    """What is known of an attempt that failed."""

    kind: Kind
    #: One line.
    message: str


def kind_of(error: BaseException) -> Kind:
    """The kind of an error as it was raised. PyTorch's and pyarrow's are known by their names and words alone."""
    if isinstance(error, OSError) and (error.errno in _FULL or "No space left on device" in str(error)):
        return "disk_full"
    name, words = type(error).__name__, str(error)
    if name == "OutOfMemoryError" or re.match(r"(CUDA|HIP) error: out of memory", words):
        return "gpu_memory"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in words:
        return "host_memory"
    return "application"


def words_of(error: BaseException) -> str:
    """The error as one line that `failure_from` understands."""
    message = " ".join(str(error).split())
    return f"{kind_of(error)}: {type(error).__name__}" + (f": {message}" if message else "")


def failure_from(text: str) -> Failure:
    """What an error's text says, as Tune writes it down: of several errors after one another the last is meant."""
    block = text.rpartition(_HEADING)[2].strip()
    lines = [line.strip() for line in block.splitlines()] or ["unknown error"]
    own = [match for line in lines if (match := _OWN_WORDS.search(line))]
    if own:
        kind = next(kind for kind in get_args(Kind) if kind == own[-1][1])
        return Failure(kind, own[-1][2])
    for line in lines:
        if _KILLED_FOR_MEMORY.search(line):
            return Failure("host_memory", line)
    if _TASK.search(block):
        return Failure("application", _MODULES.sub("", lines[-1]))
    return Failure("lost", next((line for line in lines if _NODE_DIED in line), _MODULES.sub("", lines[-1])))


def is_told_again(text: str) -> bool:
    """Whether the last error is the one before it: of a worker that dies between two packs Tune may tell twice."""
    *_, before, last = ["", *text.split(_HEADING)]
    dead = _DEAD.search(last)
    return dead is not None and dead[1] in _DEAD.findall(before)


def decide(kinds: Sequence[Kind], max_failures: int) -> Action:
    """What to do with a pack after it failed.

    Args:
        kinds: of each of its failures since the command began, the newest last.
        max_failures: how often an error of the program is tried again.

    >>> decide(["lost", "lost", "lost"], max_failures=0)
    'retry'
    >>> decide(["application", "lost", "application"], max_failures=1)
    'give_up'
    """
    newest = kinds[-1]
    if newest == "disk_full":
        return "end_sweep"
    if newest == "lost" or (newest == "application" and kinds.count(newest) <= max_failures):
        return "retry"
    if newest == "host_memory" and kinds.count(newest) == 1:
        return "retry_alone"
    return "give_up"


class Brake:
    """Counts attempts that failed in a row, all packs together, with no pack having come further in between.

    A node that goes takes many attempts along: of losses among attempts that were under way at the last failure
    counted, none counts again, and none of an attempt that had not begun on a node that went.
    """

    def __init__(self, limit: int) -> None:
        """``limit``: attempts in a row that are too many; 0 never brakes."""
        self._limit = limit
        self._in_a_row = 0
        #: Packs whose attempt began and has not failed.
        self._under_way: set[str] = set()
        #: Those that were under way at the last failure counted, and have not failed since.
        self._excused: set[str] = set()
        #: The furthest step each pack has reported.
        self._furthest: dict[str, int] = {}

    @property
    def pulled(self) -> bool:
        """Whether the sweep is to end."""
        return 0 < self._limit <= self._in_a_row

    def started(self, pack: str) -> None:
        """An attempt of a pack began."""
        self._under_way.add(pack)

    def reported(self, pack: str, step: int) -> None:
        """A pack reported; steps that it had reached before are no progress."""
        if step > self._furthest.get(pack, 0):
            self._furthest[pack] = step
            self._in_a_row = 0

    def failed(self, pack: str, failure: Failure) -> None:
        """An attempt of a pack failed, perhaps before it began: a worker may not live to load the program."""
        went_with_node = pack not in self._under_way and _NODE_DIED in failure.message
        is_excused = failure.kind == "lost" and (pack in self._excused or went_with_node)
        self._under_way.discard(pack)
        self._excused.discard(pack)
        if not is_excused:
            self._in_a_row += 1
            self._excused = set(self._under_way)
