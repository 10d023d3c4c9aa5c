"""Every public function shows itself at work; the examples themselves run as doctests."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import altgrad.quantization


def public_functions() -> Iterator[tuple[str, Any]]:
    for info in pkgutil.iter_modules(altgrad.quantization.__path__):
        module = importlib.import_module(f"altgrad.quantization.{info.name}")
        for name, value in vars(module).items():
            function = inspect.unwrap(value) if callable(value) else None
            if inspect.isfunction(function) and function.__module__ == module.__name__ and name[0] != "_":
                yield f"{info.name}.{name}", value


@pytest.mark.parametrize("function", [pytest.param(value, id=name) for name, value in public_functions()])
def test_has_an_example(function: Any) -> None:
    assert ">>> " in (inspect.getdoc(function) or "")
