"""The command itself: what its verbs share, how errors are told, and the exit codes they give."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

import altgrad
from altgrad.training.config import ConfigError, CorpusError
from orchestrator.results.errors import DamagedError, NewerError, QueryError
from orchestrator.space import SpaceError
from orchestrator.terminal import ENVIRONMENT, INTEGRITY, USAGE, complain, discard, say

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

    from orchestrator.plan import Plan
    from orchestrator.results.store import Store

app = App(
    name="altgrad",
    help="Which 8-bit number format trains a GPT best, and where and why do the others fail?",
    version=altgrad.__version__,
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


Override = Annotated[str, Parameter(help="key=value: a parameter, a key of the file, or a field of a run.")]
Space = Annotated[Path, Parameter(help="A search space file; `altgrad init` writes one.")]
Json = Annotated[bool, Parameter("--json", help="Print JSON, for scripts.")]


def _runs(context: "CompletionContext") -> list[str]:
    """What a shell offers in a run's place: names under runs/, or folders at the path that was begun."""
    begun = context.incomplete
    folder = Path("runs") if "/" not in begun else Path(begun if begun.endswith("/") else Path(begun).parent)
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    runs = [path for path in inside if (path / "plan.json").is_file()]
    if "/" not in begun:
        return [path.name for path in runs]
    return [f"{path}" if path in runs else f"{path}/" for path in inside]


Run = Annotated[str, Parameter(help="The run's folder or URI, or its name under runs/.", completer=_runs)]


class UsageError(Exception):
    """Something the person who typed the command can put right."""


class UnfitError(Exception):
    """What this machine lacks for what was asked."""


class IntegrityError(Exception):
    """Kept data that is not what was written."""


def main() -> None:
    """Entry point of the command; exit codes are those of the README."""
    try:
        code = app(sys.argv[1:])
        sys.stdout.flush()
    except (SpaceError, ConfigError, CorpusError, UsageError) as error:
        complain(error)
        code = USAGE
    except (UnfitError, NewerError) as error:
        complain(error)
        code = ENVIRONMENT
    except (IntegrityError, DamagedError) as error:
        complain(error)
        code = INTEGRITY
    except QueryError as error:
        complain(error)
        code = USAGE
    except BrokenPipeError:
        discard(sys.stdout)
        code = 128 + signal.SIGPIPE
    except OSError as error:
        complain(error)
        code = ENVIRONMENT
    except KeyboardInterrupt:
        say("interrupted")
        code = 128 + signal.SIGINT
    sys.exit(code)


def planned(space: Path, overrides: Sequence[str]) -> "Plan":
    """The plan of a search space, with what the command line changes in it."""
    from orchestrator.space import load_space

    spec = load_space(space, overrides)
    from orchestrator.run_folder import plan_sweep

    return plan_sweep(spec)


def opened(run: str) -> "Store":
    """The folder of a run that exists."""
    from orchestrator.run_folder import open_run

    with folder_trouble():
        return open_run(run)


@contextmanager
def asked_wrongly() -> Iterator[None]:
    """What is refused is the caller's mistake, unless it is damage."""
    try:
        yield
    except DamagedError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def folder_trouble() -> Iterator[None]:
    """What is wrong with a run's folder is the caller's mistake, or damage."""
    from orchestrator.run_folder import DamagedRunError, RunFolderError

    try:
        yield
    except RunFolderError as error:
        raise UsageError(str(error)) from error
    except DamagedRunError as error:
        raise IntegrityError(str(error)) from error
