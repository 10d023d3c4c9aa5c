"""What the pages say can be done, can be done: search spaces load, commands parse, links lead somewhere."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cyclopts import CycloptsError, MissingArgumentError
from markdown_it import MarkdownIt
from markdown_it.token import Token
from results.synthetic_sweep import Sweep

from orchestrator.cli import app
from orchestrator.results.journal import RECORD_KINDS
from orchestrator.results.store import Store
from orchestrator.space import SpaceError, load_space
from orchestrator.space.spec import RUN_FIELDS, SPEC_KEYS, SweepSpec, flatten
from orchestrator.space.yaml_source import parse_yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
#: Followed from the first word to the last by test_guides.py.
GUIDES = ROOT / "docs" / "guides"
WITH_COMMANDS = [page for page in PAGES if page.name != "TEST_MATRIX.md"]
MARKDOWN = MarkdownIt("commonmark").enable("table")
SHELL = ("", "sh", "bash", "console")
#: Words of shell after which another command begins.
ENDS = ("&&", "||", "|", ";", "&", ">", ">>")


def tokens(page: Path) -> list[Token]:
    """All tokens of a page, those inside paragraphs and cells included, in order."""
    blocks = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    return [token for block in blocks for token in (block, *(block.children or ()))]


def name_of(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


class Space(NamedTuple):
    """A search space as a page shows it."""

    page: Path
    text: str
    #: What the page says is wrong with it; empty for one that loads.
    errors: str

    def __str__(self) -> str:
        return f"{self.page.name}-{self.text.partition(chr(10))[0].strip('# ')}"


def spaces() -> Iterator[Space]:
    """Whole spaces begin with their name; mistaken ones with a comment that names their file, and errors follow."""
    for page in PAGES:
        fences = [token for token in tokens(page) if token.type == "fence"]
        for fence, following in itertools.zip_longest(fences, fences[1:]):
            if fence.info == "yaml" and fence.content.startswith("name:"):
                yield Space(page, fence.content, "")
            elif fence.info == "yaml" and re.match(r"# \w+\.yaml\n", fence.content):
                yield Space(page, fence.content, following.content)


@pytest.mark.parametrize("space", [space for space in spaces() if not space.errors], ids=str)
def test_a_space_on_a_page_loads(space: Space, tmp_path: Path):
    (tmp_path / "space.yaml").write_text(space.text)
    load_space(tmp_path / "space.yaml")


@pytest.mark.parametrize("space", [space for space in spaces() if space.errors], ids=str)
def test_a_mistaken_space_on_a_page_is_refused_in_these_words(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = Path(space.text.partition("\n")[0].removeprefix("# "))
    path.write_text(space.text)
    with pytest.raises(SpaceError) as error:
        load_space(path)
    assert [f"error: {line}" for line in str(error.value).splitlines()] == space.errors.splitlines()


def commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """The arguments of every ``altgrad`` command on a page, and whether it is whole: within a text it may be cut."""
    for token in tokens(page):
        if token.type == "fence" and token.info in SHELL:
            for line in token.content.replace("\\\n", " ").splitlines():
                yield from ((arguments, True) for arguments in in_shell(line))
        elif token.type == "code_inline" and token.content.startswith("altgrad "):
            yield from ((arguments, False) for arguments in in_shell(token.content))


def in_shell(line: str) -> Iterator[list[str]]:
    """The arguments of ``altgrad`` where a line of shell calls it, also in a command given to another one."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return
    for is_end, group in itertools.groupby(words, lambda word: word in ENDS):
        command = [] if is_end else list(itertools.dropwhile(lambda word: re.match(r"\w+=|\$$", word), group))
        if command and re.fullmatch(r"(.*/)?altgrad", command[0]):
            yield command[1:]
        else:
            yield from (arguments for word in command if " " in word for arguments in in_shell(word))


ALL_COMMANDS = [(page, *command) for page in WITH_COMMANDS for command in commands(page)]


@pytest.mark.parametrize(("page", "arguments", "whole"), ALL_COMMANDS, ids=name_of)
def test_a_command_on_a_page_exists(page: Path, arguments: list[str], whole: bool):
    try:
        command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
    except MissingArgumentError:
        assert not whole
        return
    except CycloptsError as error:
        pytest.fail(f"{page.name}: altgrad {shlex.join(arguments)}: {error}")
    space = ROOT / bound.arguments.get("space", "-")
    if command.__name__ in ("plan", "sweep") and space.exists():
        load_space(space, bound.arguments.get("overrides", ()))


def test_commands_are_found_however_they_are_written():
    line = "cd x && LANES=1 .venv/bin/altgrad plan a.yaml 'lr=[1, 2]' > out  # a comment"
    assert list(in_shell(line)) == [["plan", "a.yaml", "lr=[1, 2]"]]
    assert list(in_shell("ray exec c.yaml 'altgrad status x --json'")) == [["status", "x", "--json"]]
    assert list(in_shell("pip install altgrad")) == list(in_shell("altgrad/  a folder")) == []
    assert [page for page, arguments, _ in ALL_COMMANDS if arguments[:1] == ["plan"]]


PROGRAMS = [
    (page, token.content)
    for page in PAGES
    for token in tokens(page)
    if token.type == "fence" and token.info == "python" and page.parent != GUIDES
]


@pytest.fixture(scope="module")
def with_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that pages read from."""
    folder = tmp_path_factory.mktemp("there")
    sweep = Sweep(Store.open(folder / "runs" / "quickstart"))
    sweep.train(sweep.add_pack(), [2.5])
    return folder


@pytest.mark.parametrize(("page", "program"), PROGRAMS, ids=lambda value: getattr(value, "stem", ""))
def test_a_program_on_a_page_runs(page: Path, program: str, with_a_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(with_a_run)
    exec(compile(program, page.name, "exec"), {"__name__": "__main__"})


def slugs(page: Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    blocks = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    titles = (after.content for token, after in itertools.pairwise(blocks) if token.type == "heading_open")
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


LINKS = [
    (page, str(target))
    for page in PAGES
    for token in tokens(page)
    for target in (token.attrGet("href"), token.attrGet("src"))
    if target and not re.match(r"[a-z]+:", str(target))
]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=name_of)
def test_a_link_leads_somewhere(page: Path, link: str):
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    assert not anchor or anchor in slugs(target)


NAMED_FILES = sorted(
    {
        (page, token.content)
        for page in PAGES
        for token in tokens(page)
        if token.type == "code_inline"
        and re.fullmatch(r"(altgrad|orchestrator|tests|search_spaces)/[\w/]+\.(py|yaml)", token.content)
    }
)


@pytest.mark.parametrize(("page", "file"), NAMED_FILES, ids=name_of)
def test_a_file_named_on_a_page_exists(page: Path, file: str):
    assert (ROOT / file).exists()


def test_the_tree_of_the_readme_names_files_that_exist():
    tree = max((token.content for token in tokens(ROOT / "README.md") if token.type == "fence"), key=len)
    there = {path.name for folder in ("altgrad", "orchestrator") for path in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"\w+\.py\b", tree)) <= there


def described(page: Path) -> dict[str, str]:
    """First and second cell of every table row whose first is code."""
    rows: dict[str, str] = {}
    cells: list[Token] = []
    for token, after in itertools.pairwise(MARKDOWN.parse(page.read_text(encoding="utf-8"))):
        if token.type == "tr_open":
            cells = []
        elif token.type == "td_open":
            cells.append(after)
            if len(cells) == 2 and re.fullmatch(r"`[\w.]+`", cells[0].content):
                rows[cells[0].content.strip("`")] = after.content.strip("`")
    return rows


SPACES_PAGE = described(ROOT / "docs" / "search_spaces.md")
SPEC = SweepSpec("x", (), {}, (), {}).to_dict()
SECTIONS = ("metric", "early_terminate", "resources", "wandb")
SCALARS = ("description", "method", "run_cap", "max_failures", "max_consecutive_failures", "exclude")
DEFAULTS = dict(RUN_FIELDS) | flatten({key: SPEC[key] for key in (*SECTIONS, *SCALARS)})


def test_every_key_of_a_search_space_is_described():
    keys = {key for key in SPEC_KEYS if key not in SECTIONS}
    assert keys | set(DEFAULTS) <= set(SPACES_PAGE) | {"early_terminate"}


@pytest.mark.parametrize(("key", "default"), DEFAULTS.items(), ids=str)
def test_a_default_on_the_page_is_the_default(key: str, default: object):
    # `seed` is a key of the file and a field of a run.
    assert parse_yaml(SPACES_PAGE[key], key).data == default


def test_every_event_of_the_journal_is_described():
    assert set(RECORD_KINDS) <= set(described(ROOT / "docs" / "runs.md"))
