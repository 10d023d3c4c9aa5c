"""A walk through all verbs: help, good use, misuse; exit codes, what goes where, and nothing but text."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from command import Command, Done
from results.synthetic_sweep import Sweep

from orchestrator.cli import app
from orchestrator.results.store import Store

ROOT = Path(__file__).parents[1]
SPACE = """\
name: space
parameters:
  format: {values: [fp32, E4M3]}
run: {steps: 2, eval_batches: 1, corpus: walk.txt, model: {n_layer: 1, n_head: 1, n_embd: 32, block_size: 8}}
"""
RUN = """\
steps: 2
report_interval: 1
eval_batches: 1
corpus: walk.txt
model: {n_layer: 1, n_head: 1, n_embd: 32, block_size: 8}
"""


class Use(NamedTuple):
    """A good use of a verb, in a folder with ``space.yaml``, ``run.yaml`` and the finished run ``runs/done``."""

    arguments: list[str]
    #: What stdout has.
    prints: str


GOOD = {
    "init": Use(["new.yaml"], "wrote new.yaml"),
    "plan": Use(["space.yaml"], "2 trials in 2 packs"),
    "train": Use(["run.yaml"], "step      2"),
    "status": Use(["done"], "not being run"),
    "stop": Use(["done"], ""),
    "consolidate": Use(["done"], "files written"),
    "query": Use(["done", "SELECT count(*) AS n FROM trials"], "n"),
    "matrix": Use(["done"], "E4M3"),
    "report": Use(["done"], "report.html"),
    "formats": Use(["E5M2"], "57344"),
    "completion": Use(["bash"], "complete -F _altgrad altgrad"),
}
#: Verbs whose good use takes a sweep, or a look at the whole machine, and where it is tested.
ELSEWHERE = {"sweep": "test_sweep.py", "resume": "test_sweep.py", "doctor": "test_doctor.py"}
#: Verbs that read a run, with what else they need.
OF_A_RUN = {
    "status": [],
    "stop": [],
    "resume": [],
    "consolidate": [],
    "matrix": [],
    "report": [],
    "query": ["SELECT 1"],
}
#: Arguments with which each of the others is complete.
COMPLETE = {verb: use.arguments for verb, use in GOOD.items()} | {"sweep": ["space.yaml"], "doctor": []}

#: Arguments, exit code, and words of the error.
MISUSE: list[tuple[list[str], int, list[str]]] = [
    *((["plan" if verb == "plan" else "sweep", "nowhere.yaml"], 2, ["no such file"]) for verb in ("plan", "sweep")),
    (["train", "nowhere.yaml"], 2, ["nowhere.yaml", "cannot be read"]),
    (["train", "run.yaml", "steps=many"], 2, ["steps", "expected a whole number", "'many'"]),
    (["train", "run.yaml", "step=2"], 2, ["step", "did you mean 'steps'?"]),
    (["plan", "space.yaml", "fromat=E4M3"], 2, ["fromat", "did you mean 'format'?"]),
    (["plan", "space.yaml", "format=E4M4"], 2, ["E4M4", "did you mean 'E4M3'?"]),
    (["plan", "space.yaml", "corpus=gone.txt"], 2, ["no corpus at", "gone.txt", "stdlib"]),
    (["sweep", "space.yaml", "--name", "../out"], 2, ["'../out' is not a valid name"]),
    (["sweep", "space.yaml", "--storage", "s3://u:secret@host/runs"], 2, ["must not carry a password"]),
    (["init", "x.yaml", "--seeds", "three"], 2, ["--seeds", "three"]),
    (["init", "x.yaml", "--formats", "E4M4"], 2, ["--formats", "did you mean 'E4M3'?"]),
    (["init", "space.yaml"], 2, ["is there already", "--force"]),
    (["stop", "done", "--timeout", "soon"], 2, ["--timeout", "soon"]),
    (["stop", "done", "--timeout", "-1"], 2, ["--timeout", "-1"]),
    (["status", "done", "--every", "0"], 2, ["--every", "0"]),
    (["status", "done", "--every", "inf"], 2, ["--every", "86400"]),
    (["query", "done", "SELECT nothing FROM trials"], 2, ["nothing"]),
    (["query", "done", "SELECT 1", "--format", "xml"], 2, ["xml", "csv"]),
    (["matrix", "done", "--metric", "val_los"], 2, ["val_los"]),
    (["formats", "E4M4"], 2, ["unknown format 'E4M4'; did you mean 'E4M3'?"]),
    (["completion", "tcsh"], 2, ["tcsh", "bash"]),
    (["statsu", "done"], 2, ["statsu", "status"]),
    (["resume", "damaged"], 5, ["plan.json cannot be understood"]),
    (["status", "damaged"], 5, ["plan.json cannot be understood"]),
    *(([verb, "empty", *more], 5, ["it is a plan without trials"]) for verb, more in OF_A_RUN.items()),
    *(([verb, "none", *more], 2, ["no sweep in 'none'"]) for verb, more in OF_A_RUN.items()),
    *(([verb, *arguments, "--no-such-option"], 2, ["no-such-option"]) for verb, arguments in COMPLETE.items()),
    *(([verb], 2, []) for verb in (*OF_A_RUN, "plan", "sweep", "train", "completion")),
]


def verbs() -> set[str]:
    return {name for name in app if not name.startswith("-")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `Use` has it, beside a run whose plan is garbled, and one whose plan has no trials."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "walk.txt").write_text("To be, or not to be. " * 400)
    (folder / "space.yaml").write_text(SPACE)
    (folder / "run.yaml").write_text(RUN)
    sweep = Sweep(Store.open(folder / "runs/done"))
    for optimizer in ("adamw", "grid"):
        sweep.train(sweep.add_pack(2, optimizer=optimizer, storage="nearest"), [2.5, 2.75])
    (folder / "runs/damaged").mkdir()
    (folder / "runs/damaged/plan.json").write_text("{garbled")
    Sweep(Store.open(folder / "runs/empty")).save()
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def is_plain(done: Done) -> bool:
    """Without colours, and without the insides of the program."""
    return "\x1b" not in done.out + done.err and "Traceback" not in done.out + done.err


def test_every_verb_is_walked_through() -> None:
    assert set(GOOD) | set(ELSEWHERE) == verbs()
    assert not set(GOOD) & set(ELSEWHERE)
    assert {arguments[0] for arguments, _, _ in MISUSE} >= verbs()
    for verb, file in ELSEWHERE.items():
        assert re.search(rf'\b(altgrad\(\s*"{verb}"|facts\.{verb}\()', (ROOT / "tests" / file).read_text())


# --- help


@pytest.mark.parametrize("verb", ["", *sorted(verbs())])
def test_help_fits_a_narrow_terminal_and_has_an_example_that_parses(verb: str, command: Command) -> None:
    done = command(*filter(None, [verb]), "--help")
    assert (done.code, done.err) == (0, "")
    assert is_plain(done)
    assert max(map(len, done.out.splitlines())) <= 80
    assert all(name in done.out for name in ([verb] if verb else verbs()))
    examples = re.findall(r"^ *Example: altgrad (.+)$", doc(verb), re.MULTILINE) if verb else []
    assert bool(examples) == bool(verb)
    for example in examples:
        found, _, _ = app.parse_args(shlex.split(example), print_error=False, exit_on_error=False)
        assert found is app[verb].default_command
        assert f"Example: altgrad {example}" in " ".join(done.out.split())


def doc(verb: str) -> str:
    return app[verb].default_command.__doc__ or ""


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_argument_is_explained(verb: str) -> None:
    arguments = app[verb].assemble_argument_collection(parse_docstring=True)
    assert [argument.name for argument in arguments if not argument.parameter.help] == []


def test_no_help_loads_a_heavy_library() -> None:
    code = (
        "import sys\n"
        "from orchestrator.cli import app, main\n"
        "for verb in ['', *(name for name in app if not name.startswith('-'))]:\n"
        "    sys.argv = ['altgrad', *filter(None, [verb]), '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code\n"
        "    heavy = {'torch', 'ray', 'pyarrow', 'duckdb', 'wandb', 'pandas', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, (verb, heavy)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- use


@pytest.mark.parametrize("verb", GOOD)
def test_a_good_use_prints_what_was_asked_for(verb: str, command: Command) -> None:
    done = command(verb, *GOOD[verb].arguments)
    assert done.code == 0, done.err
    assert GOOD[verb].prints in done.out
    assert "error" not in done.err
    assert is_plain(done)


def test_a_long_name_is_folded_and_not_cut(command: Command, tmp_path: Path) -> None:
    parts = ["*wte*", "h.0.attn.*", "h.0.mlp.*", "h.*.*.*c_proj*", "h.*.*.*", "*"]
    rules = ", ".join(f"{{match: '{part}', format: E5M2}}" for part in parts)
    (tmp_path / "long.yaml").write_text(SPACE.replace("parameters:", f"parameters:\n  layers: {{values: [[{rules}]]}}"))
    done = command("plan", tmp_path / "long.yaml")
    assert done.code == 0, done.err
    table = [line for line in done.out.splitlines() if "│" in line]
    assert max(map(len, table)) <= 80
    assert ",".join(f"{part}:E5M2" for part in parts) in "".join(line.split("│")[1].strip() for line in table)


@pytest.mark.parametrize("verb", [verb for verb in GOOD if "--json" in str(app[verb].assemble_argument_collection())])
def test_as_json_there_is_nothing_else_on_stdout(verb: str, command: Command) -> None:
    done = command(verb, *GOOD[verb].arguments, "--json")
    assert done.code == 0, done.err
    json.loads(done.out, parse_constant=lambda text: pytest.fail(f"not JSON: {text}"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    MISUSE,
    ids=lambda value: shlex.join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_a_mistake_is_explained_on_stderr_alone(
    arguments: list[str], code: int, words: list[str], command: Command, here: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    done = command(*arguments)
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.strip()
    for word in words:
        assert word in done.err
    assert is_plain(done)
    assert {path: path.stat().st_mtime_ns for path in here.iterdir()} == before, "nothing was begun"


# --- completion


def completed(script: str, words: list[str], home: Path) -> list[str]:
    """What bash offers for the last of the words."""
    typed = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}"
    inside = f"{script}\n{typed}\n_altgrad\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", inside], capture_output=True, text=True, check=True, cwd=home)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(scope="module")
def script() -> str:
    return app.generate_completion(shell="bash")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["altgrad", "st"], {"status", "stop"}),
        (["altgrad", "status", "done", "--w"], {"--watch"}),
        (["altgrad", "completion", "b"], {"bash"}),
        (["altgrad", "plan", "sp"], {"space.yaml"}),
        (["altgrad", "nothing"], set()),
    ],
)
def test_bash_completes_verbs_options_choices_and_files(
    words: list[str], offered: set[str], script: str, here: Path
) -> None:
    assert set(completed(script, words, here)) == offered


def test_bash_completes_the_names_and_paths_of_runs(script: str, here: Path, tmp_path: Path) -> None:
    shim = tmp_path / "altgrad"
    shim.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m orchestrator.cli "$@"\n')
    shim.chmod(0o755)
    assert completed(script, [str(shim), "matrix", "d"], here) == ["damaged", "done"]


@pytest.mark.parametrize(
    ("begun", "offered"),
    [
        ("", ["damaged", "done", "empty"]),
        ("runs/do", ["runs/damaged", "runs/done", "runs/empty"]),
        ("./", ["runs/"]),
        ("x/", []),
    ],
)
def test_what_is_offered_in_a_runs_place(begun: str, offered: list[str], command: Command) -> None:
    done = command("__complete", "status", begun)
    found = done.out.splitlines()
    assert [line.split("\t")[0] for line in found[found.index("\x1fbegin") + 1 :]] == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script(shell: str, command: Command) -> None:
    assert "altgrad" in command("completion", shell).out
