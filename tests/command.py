"""The `altgrad` command called in this process: what it costs is the command, not the interpreter and its imports."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from orchestrator.cli import main
from orchestrator.terminal import err, out


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


#: Calls the command with these arguments.
Command = Callable[..., Done]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int = 80) -> Command:
    """A command on a terminal so wide that takes no colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))

    def call(*arguments: object) -> Done:
        monkeypatch.setattr("sys.argv", ["altgrad", *map(str, arguments)])
        for console in (out, err):
            console.width, console.no_color = width, True
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return call
