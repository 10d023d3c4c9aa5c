"""Keeping and reading results: no Ray, no torch, no GPU.

``load`` returns a sweep's tables. It is imported when it is first asked for, so that the command's help is not kept
waiting for Arrow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.results.tables import Tables, load

__all__ = ["Tables", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrator.results import tables

    return getattr(tables, name)
