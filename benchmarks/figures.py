"""How the benchmarks that measure a single machine's seconds print them."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """A table for people, and where it is asked for one JSON object on the last line.

    Args:
        result: figures by name, among them the ``load_average`` before; a mapping has a row for each of its figures.
        as_json: print the object too.
    """
    load = f"load average before: {result['load_average']:.2f}"
    shown = Table("what", "figure", title=load, title_justify="left")
    for name, value in result.items():
        for part, figure in value.items() if isinstance(value, Mapping) else [("", value)]:
            shown.add_row(f"{name} {part}".rstrip(), _figure(figure))
    Console().print(shown)
    if as_json:
        print(json.dumps(result))


def _figure(value: Any) -> str:
    match value:
        case float():
            return f"{value:.3f}"
        case int():
            return f"{value:,}"
    return escape(str(value))
