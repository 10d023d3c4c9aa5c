"""YAML 1.2 as plain data in which every key and value still knows its line."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

#: Where something stands in a file: the keys from the outermost in, list positions as numbers.
KeyPath = tuple[str | int, ...]

_TEXT = "tag:yaml.org,2002:str"


class Place(NamedTuple):
    """Where a piece of data was written."""

    #: The file as it was named, or the override.
    source: str
    #: From 1; None where the source has no lines.
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class SpaceProblem(NamedTuple):
    """One thing wrong with a search space."""

    place: Place
    path: KeyPath
    message: str

    @property
    def line(self) -> int | None:
        """The line it stands on, from 1; None for an override or a file that cannot be read."""
        return self.place.line

    def __str__(self) -> str:
        dotted = ".".join(map(str, self.path))
        return f"{self.place}: {dotted}: {self.message}" if dotted else f"{self.place}: {self.message}"


class SpaceError(ValueError):
    """A search space that cannot be run; carries every problem found, in the order of the file's lines."""

    def __init__(self, problems: list[SpaceProblem]) -> None:
        ordered = sorted(problems, key=lambda problem: problem.line or 0)
        super().__init__("\n".join(map(str, ordered)))
        self.problems = ordered


@dataclass
class Source:
    """Plain data, where each part of it was written, and what was found wrong with it so far."""

    #: The file as it was named.
    name: str
    data: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[SpaceProblem] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Where ``path`` was written, or the nearest thing around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(self.name)

    def problem(self, path: KeyPath, message: str) -> None:
        """Note something wrong at ``path``."""
        self.problems.append(SpaceProblem(self.place(path), path, message))

    def check(self) -> None:
        """End here if anything is wrong.

        Raises:
            SpaceError: with all problems noted so far.
        """
        if self.problems:
            raise SpaceError(self.problems)

    def replace(self, path: KeyPath, value: Any, place: Place) -> None:
        """Write ``value`` at ``path``, making the maps on the way; a non-map on the way is a problem."""
        here = self.data
        for i, key in enumerate(path[:-1]):
            here = here.setdefault(key, {})
            if not isinstance(here, dict):
                self.problems.append(SpaceProblem(place, path[: i + 1], "holds a single value, no keys"))
                return
        here[path[-1]] = value
        self.places = {known: at for known, at in self.places.items() if known[: len(path)] != path}
        self.places[path] = place


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as one YAML 1.2 document, keys in their order."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False
    yaml.default_flow_style = None
    yaml.width = 120
    yaml.dump(dict(data), text)
    return text.getvalue()


def parse_yaml(text: str, name: str) -> Source:
    """Read one YAML 1.2 document; ``data`` is None where the text is empty.

    In YAML 1.2 ``1e-3`` is a number and ``no`` is text. Keys that appear twice are problems of the source.

    Raises:
        SpaceError: the text is not YAML.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ": ".join(part for part in (error.context, error.problem) if part)
        raise SpaceError([SpaceProblem(Place(name, mark.line + 1 if mark else None), (), message)]) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"the character {error.character!r} is not allowed in YAML"
        raise SpaceError([SpaceProblem(Place(name, line), (), message)]) from None
    source = Source(name, None)
    if root is not None:
        source.data = _plain(source, yaml, root, (), ())
    return source


def _plain(source: Source, yaml: YAML, node: Node, path: KeyPath, above: tuple[Node, ...]) -> Any:
    """A node's data; ``above`` are the nodes it lies in."""
    source.places.setdefault(path, Place(source.name, node.start_mark.line + 1))
    if any(node is outer for outer in above):
        source.problem(path, "an alias to something it lies in")
        return None
    above = (*above, node)
    if isinstance(node, MappingNode):
        return _mapping(source, yaml, node, path, above)
    if isinstance(node, SequenceNode):
        return [_plain(source, yaml, item, (*path, i), above) for i, item in enumerate(node.value)]
    try:
        return yaml.constructor.construct_object(node)
    except (YAMLError, ValueError):
        source.problem(path, f"cannot read {node.value!r} as {node.tag}")
        return None


def _mapping(source: Source, yaml: YAML, node: MappingNode, path: KeyPath, above: tuple[Node, ...]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = Place(source.name, key_node.start_mark.line + 1)
        if not isinstance(key_node, ScalarNode) or key_node.tag != _TEXT:
            shown = key_node.value if isinstance(key_node, ScalarNode) else "a list or a map"
            source.problems.append(SpaceProblem(place, path, f"keys must be text, got {shown}"))
            continue
        inner = (*path, key_node.value)
        if key_node.value in data:
            message = f"duplicate key; it stands on line {source.places[inner].line} already"
            source.problems.append(SpaceProblem(place, inner, message))
            continue
        source.places[inner] = place
        data[key_node.value] = _plain(source, yaml, value_node, inner, above)
    return data
