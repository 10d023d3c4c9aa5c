"""The guides are followed, from the first command to the last: one small sweep serves them all."""

import contextlib
import io
import os
import shlex
import sys
from pathlib import Path

import pytest
from sweeps import altgrad
from test_docs import GUIDES, SHELL, in_shell, tokens

from orchestrator.cli import main


def follow(guide: str, folder: Path) -> None:
    """Do what a page says, in its order: commands, programs, and a look whether what it shows was printed."""
    printed = ""
    for token in tokens(GUIDES / guide):
        if token.type != "fence":
            continue
        if token.info in SHELL:
            commands = [arguments for line in token.content.splitlines() for arguments in in_shell(line)]
            printed = "".join(run(arguments, folder) for arguments in commands)
        elif token.info == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(token.content, guide, "exec"), {"__name__": "__main__"})
            assert out.getvalue()
        elif token.info == "text":
            for line in token.content.splitlines():
                assert words(line) in words(printed), line


def words(text: str) -> str:
    """What a table or a line says, whatever its rules and blanks."""
    return " ".join(word for word in text.split() if not set(word) <= set("│┃━─"))


def run(arguments: list[str], folder: Path) -> str:
    """A command's stdout; where the shell would send it is the shell's business."""
    if arguments[0] == "sweep":
        done = altgrad(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout
    sys.argv = ["altgrad", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, shlex.join(arguments)
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first guide was followed to its end."""
    folder = tmp_path_factory.mktemp("guides")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [])
        follow("first_sweep.md", folder)
    return folder


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [])
    return folder


def test_the_first_sweep_ends_with_a_run(there: Path) -> None:
    assert {"my-first.yaml", "longer.yaml"} <= {*os.listdir(there)}
    assert (there / "runs/my-first/dataset/manifest.json").exists()


@pytest.mark.parametrize("guide", sorted(page.name for page in GUIDES.glob("*.md") if page.name != "first_sweep.md"))
def test_a_guide_can_be_followed(guide: str, there: Path) -> None:
    follow(guide, there)
