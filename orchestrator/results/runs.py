"""Finding sweeps that exist, and telling several apart."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.results.journal import PLAN_PATH
from orchestrator.results.store import Store

#: In a run's folder: the search space as it was resolved, a file to sweep again.
SPACE_PATH = "sweep.yaml"


def find_run(where: str, runs: str = "runs") -> Store:
    """The folder of a sweep that exists: a path or URI of it, or its name under ``runs``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: an address that cannot be opened.
    """
    for candidate in (where,) if "://" in where else (where, f"{runs}/{where}"):
        store = Store.open(candidate)
        if store.exists(PLAN_PATH):
            return store
    raise FileNotFoundError(f"no sweep in {where!r} (a run's folder holds a {PLAN_PATH})")


def is_run(where: str) -> bool:
    """Whether `find_run` finds a sweep there; whatever is no address at all is none."""
    try:
        find_run(where)
    except (OSError, ValueError):
        return False
    return True


def run_names(stores: Sequence[Store]) -> list[str]:
    """What each of several sweeps is called, such as in the column ``run``.

    That is the name of its folder; where two share one, those of the folders above it too, as far as is needed.

    Raises:
        ValueError: an empty list, or the same folder twice, however its path is spelled.
    """
    if not stores:
        raise ValueError("no sweep to read")
    uris = [store.uri for store in stores]
    folders = [uri if "://" in uri else str(Path(uri).resolve()) for uri in uris]
    for uri, folder in zip(uris, folders, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"{uri} is given twice")
    for depth in range(1, max(len(store.parts) for store in stores) + 1):
        names = ["/".join(store.parts[-depth:]) for store in stores]
        if len(set(names)) == len(names):
            return names
    return uris
