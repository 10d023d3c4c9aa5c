"""What source files say about the things in them."""

import inspect
import re
from types import ModuleType


def first_line(documented: type) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def doc_comments(where: ModuleType | type) -> dict[str, str]:
    """The ``#:`` comments of a module or a class, by the name that each stands above.

    In a module the names of all its classes are taken together; where two agree, the later one's comment counts.
    """
    found: dict[str, str] = {}
    above: list[str] = []
    for line in map(str.strip, inspect.getsource(where).splitlines()):
        if line.startswith("#:"):
            above.append(line.removeprefix("#:").strip())
            continue
        if above and (name := re.match(r"\w+", line)):
            found[name[0]] = " ".join(above)
        above = []
    return found
