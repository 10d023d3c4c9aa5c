"""Which test files reach which modules, read from the files themselves and never from running them."""

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("altgrad", "orchestrator")
#: A module as text names it, dotted or as a path.
_NAMED = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:[./]\w+)+")


@dataclass(frozen=True)
class Reach:
    """How tests get to one module."""

    #: Test files that import it, name it in a string, or use a helper that imports it; relative to ``tests``.
    tests: tuple[str, ...]
    #: Its docstrings hold examples that the test run executes.
    doctests: bool
    #: Modules that import it: the way in where no test file does.
    users: tuple[str, ...]


def reach(root: Path) -> dict[str, Reach]:
    """How tests get to every module that holds code, by dotted name.

    A name imported from a package counts for the module that the package takes it from.

    Args:
        root: The repository.
    """
    files = {_dotted(path.relative_to(root)): path for package in PACKAGES for path in (root / package).rglob("*.py")}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in sorted(files.items())}
    exports = {name: _exports(trees[name]) for name, path in files.items() if path.name == "__init__.py"}
    uses = {name: _modules(tree, trees, exports) for name, tree in trees.items()}
    tests = _test_uses(root / "tests", trees, exports)
    examples = [root / folder for folder in _test_paths(root)]
    return {
        name: Reach(
            tests=tuple(test for test, used in tests.items() if name in used),
            doctests=any(folder in files[name].parents for folder in examples) and ">>> " in files[name].read_text(),
            users=tuple(user for user, used in uses.items() if name in used and user != name),
        )
        for name, tree in trees.items()
        if tree.body
    }


def _test_uses(
    folder: Path, modules: Mapping[str, ast.Module], exports: Mapping[str, Mapping[str, str]]
) -> dict[str, set[str]]:
    """Modules that each test file reaches, helpers included."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}
    direct = {path: _modules(tree, modules, exports) | _named(tree, modules) for path, tree in trees.items()}
    helpers = {path.stem: path for path in trees if not path.name.startswith(("test_", "conftest"))}
    reached = {}
    for path, tree in trees.items():
        if path.name.startswith("test_"):
            imported = {name.partition(".")[0] for name, _ in _imports(tree)}
            used = direct[path].union(*(direct[helpers[name]] for name in imported if name in helpers))
            reached[path.relative_to(folder).with_suffix("").as_posix()] = used
    return reached


def _modules(tree: ast.Module, modules: Mapping[str, ast.Module], exports: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Modules that a file imports; of a package's name, the module that it comes from too."""
    found = set()
    for module, name in _imports(tree):
        inner = f"{module}.{name}"
        found |= {inner} if name and inner in modules else {module}
        if name in exports.get(module, {}):
            found.add(exports[module][name])
    return found & modules.keys()


def _named(tree: ast.Module, modules: Mapping[str, ast.Module]) -> set[str]:
    """Modules that stand in a file's strings, such as programs run in another process; docstrings do not count."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    )
    found = set()
    for name in (match.replace("/", ".") for text in texts for match in _NAMED.findall(text)):
        # What follows a module's name is a name in it, or its suffix.
        while name.count(".") > 1 and name not in modules:
            name = name.rpartition(".")[0]
        found.add(name)
    return found & modules.keys()


def _exports(package: ast.Module) -> dict[str, str]:
    """Where the names that a package offers come from."""
    return {name: module for module, name in _imports(package) if name}


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of everything that is imported; the name is empty where it is the module itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _test_paths(root: Path) -> list[str]:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    paths: list[str] = settings["tool"]["pytest"]["ini_options"]["testpaths"]
    return paths
